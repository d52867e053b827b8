"""From token ids to text, one token at a time: whole characters only, and never a stop text.

A token may be a part of a character (byte-level vocabularies) and its text may depend on the token before (a leading
space that only the first token loses), so ids are decoded in a short window and the difference is what a token adds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from operator import itemgetter

REPLACEMENT = "\ufffd"  # what an unfinished character decodes to
CONTEXT_TOKENS = 6  # tokens of the prompt that decide how the first generated one reads
MAX_CHARACTER_TOKENS = 4  # bytes of the longest character in UTF-8

Decode = Callable[[Sequence[int]], str]


class IncrementalText:
    """The text of a growing sequence of ids.

    The window starts at the last piece of text that was finished: far enough back for its tokens to read as they do in
    the whole sequence, and never inside a character.
    """

    def __init__(self, decode: Decode, context: Sequence[int] = ()) -> None:
        """Start after `context`, ids whose text is known to be whole."""
        self._decode = decode
        # From within a character, a byte-fallback decoder would give up those after it, too.
        lengths = range(CONTEXT_TOKENS, CONTEXT_TOKENS + MAX_CHARACTER_TOKENS)
        whole = (n for n in lengths if not decode(context[-n:]).startswith(REPLACEMENT))
        self._window = list(context[-next(whole, CONTEXT_TOKENS) :])
        self._read = len(self._window)  # ids of the window whose text was given out
        self._read_text = decode(self._window)

    def push(self, token_id: int) -> str:
        """The text that a token adds; empty while a character is unfinished."""
        self._window.append(token_id)
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT):
            return ""
        return self._give_out(text)

    def flush(self) -> str:
        """What an unfinished character leaves: replacement characters."""
        return self._give_out(self._decode(self._window))

    def _give_out(self, text: str) -> str:
        if text.startswith(self._read_text):
            added = text[len(self._read_text) :]
        else:  # a byte-fallback decoder gives up whole characters beside a byte that is none: they have been said
            added = self._decode(self._window[self._read :])
        if added:
            # The piece just finished becomes the context of the next; one without text (a special token) would be none.
            self._window = self._window[self._read :]
            self._read_text = self._decode(self._window)
        else:
            self._read_text = text
        self._read = len(self._window)
        return added


class CompletionText:
    """The text of a completion, with each token's place in it, cut before the first stop text.

    Tokens whose text could turn out to begin a stop text are held back.

    Attributes:
        text: what has been said so far.
        stop: the stop text that was met, None before.
        spans: each token's first code point and the one past its last.
    """

    def __init__(self, decode: Decode, context: Sequence[int], stop: Sequence[str] = ()) -> None:
        self._incremental = IncrementalText(decode, context)
        self._stop = tuple(stop)
        self.text = ""
        self.stop: str | None = None
        self.spans: list[tuple[int, int]] = []
        self._finished = False

    def push(self, token_id: int) -> None:
        """Read the next token."""
        self._add(self._incremental.push(token_id))

    def finish(self) -> None:
        """No token follows: an unfinished character counts as the last token's, and nothing is held back."""
        self._finished = True
        if self.stop is None and self.spans:
            start, _ = self.spans.pop()
            rest = self._incremental.flush()
            self.text, rest = self.text[:start], self.text[start:] + rest
            self._add(rest)

    @property
    def num_safe_tokens(self) -> int:
        """How many tokens have a text that later ones cannot change."""
        is_sure = self._finished or self.stop is not None
        held = 0 if is_sure else max((_overlap(self.text, stop) for stop in self._stop), default=0)
        safe = len(self.text) - held
        return bisect_right(self.spans, safe, key=itemgetter(1))  # places ascend

    def _add(self, piece: str) -> None:
        start = len(self.text)
        if self.stop is not None:  # tokens that the caller gave may go on behind a stop text; they say nothing
            piece = ""
        self.text += piece
        self.spans.append((start, len(self.text)))
        found = [(at, stop) for stop in self._stop if (at := self.text.find(stop, max(0, start - len(stop) + 1))) >= 0]
        if found:
            at, self.stop = min(found)
            self.text = self.text[:at]
            self.spans = [(min(a, at), min(b, at)) for a, b in self.spans]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` could go on from."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
