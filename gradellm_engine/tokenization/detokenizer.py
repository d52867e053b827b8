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
MAX_PENDING_TOKENS = 4 * MAX_CHARACTER_TOKENS  # that are decoded again and again because they end in no character

Decode = Callable[[Sequence[int]], str]


class IncrementalText:
    """The text of a growing sequence of ids.

    The window starts at the last piece of text that was finished: far enough back for its tokens to read as they do in
    the whole sequence, and never inside a character. It is bounded: bytes that cannot become a character any more are
    given out as replacement characters, however many of them follow each other.
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
        if not text.endswith(REPLACEMENT):
            return self._give_out(text)
        num_pending = len(self._window) - self._read
        if num_pending <= MAX_CHARACTER_TOKENS:
            return ""
        # The oldest of them cannot be part of a character that later ones finish.
        for num_kept in range(1, MAX_CHARACTER_TOKENS):
            head, tail = self._window[:-num_kept], self._window[-num_kept:]
            head_text = self._decode(head)
            if head_text + self._decode(tail) == text:
                self._window = head
                added = self._give_out(head_text)
                self._window += tail
                return added
        return self._give_out(text) if num_pending >= MAX_PENDING_TOKENS else ""

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
            self._window = self._window[self._read :][-MAX_PENDING_TOKENS:]
            self._read_text = self._decode(self._window)
        elif len(self._window) > MAX_PENDING_TOKENS + CONTEXT_TOKENS:  # many tokens without text
            self._window = self._window[-CONTEXT_TOKENS:]
            self._read_text = self._decode(self._window)
        else:
            self._read_text = text
        self._read = len(self._window)
        return added


class StopMatcher:
    """Finds the first of some texts in a text that comes character by character.

    One automaton a text (Knuth, Morris and Pratt): a character costs constant time in the mean, whatever the texts are.

    Attributes:
        held: the longest end of what has come that one of the texts could go on from.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(texts)
        self._borders = [_borders(text) for text in self._texts]
        self._states = [0] * len(self._texts)
        self.held = 0

    def push(self, character: str) -> list[str]:
        """The texts that end with this character."""
        met = []
        for index, (text, borders) in enumerate(zip(self._texts, self._borders, strict=True)):
            state = self._states[index]
            while state and text[state] != character:
                state = borders[state - 1]
            state += text[state] == character
            if state == len(text):
                met.append(text)
                state = borders[state - 1]
            self._states[index] = state
        self.held = max(self._states, default=0)
        return met


class CompletionText:
    """The text of a completion, with each token's place in it, cut before the first stop text.

    Tokens whose text could turn out to begin a stop text are held back. A special token, which is no text, can be a
    stop text or part of one: stop texts are looked for in what the tokens read with special tokens written out.

    Attributes:
        text: what has been said so far.
        stop: the stop text that was met, None before.
        spans: each token's first code point and the one past its last.
    """

    def __init__(
        self,
        decode: Decode,
        context: Sequence[int],
        stop: Sequence[str] = (),
        written_out: Callable[[int], str] = lambda token_id: "",
    ) -> None:
        """Start after `context`; `written_out` is how a special token reads in a stop text, empty for all others."""
        self._incremental = IncrementalText(decode, context)
        self._written_out = written_out
        self._matcher = StopMatcher(stop) if stop else None
        # Where in `text` each character lies stop texts are looked for in; a special token's have no length there.
        self._places: list[int] = []
        self.text = ""
        self.stop: str | None = None
        self.spans: list[tuple[int, int]] = []
        self._finished = False

    def push(self, token_id: int) -> None:
        """Read the next token."""
        self._add(self._incremental.push(token_id), self._written_out(token_id) if self._matcher else "")

    def finish(self) -> None:
        """No token follows: an unfinished character counts as the last token's, and nothing is held back."""
        self._finished = True
        if self.stop is None and self.spans:
            start, _ = self.spans[-1]
            self._say(self._incremental.flush())
            self.spans[-1] = (min(start, len(self.text)), len(self.text))

    @property
    def num_safe_tokens(self) -> int:
        """How many tokens have a text that later ones cannot change."""
        safe = len(self.text)
        if self._matcher and self._matcher.held and not self._finished and self.stop is None:
            safe = self._places[-self._matcher.held]
        return bisect_right(self.spans, safe, key=itemgetter(1))  # places ascend

    def _add(self, piece: str, special: str) -> None:
        start = len(self.text)
        if self.stop is None:  # tokens that the caller gave may go on behind a stop text; they say nothing
            self._say(piece)
            if special:
                self._look(special, is_said=False)
        self.spans.append((min(start, len(self.text)), len(self.text)))

    def _say(self, piece: str) -> None:
        if self._matcher is None:
            self.text += piece
        else:
            self._look(piece, is_said=True)

    def _look(self, characters: str, *, is_said: bool) -> None:
        """Take characters, up to the end of the first stop text that they complete.

        The one that begins first is met; of several that begin there, the first in lexical order.
        """
        if self._matcher is None or self.stop is not None:
            return
        start, met = len(self.text), None
        first = len(self._places)
        for offset, character in enumerate(characters):
            self._places.append(start + offset * is_said)
            for text in self._matcher.push(character):
                begin = len(self._places) - len(text)
                met = min(met, (begin, text)) if met else (begin, text)
        if is_said:
            self.text += characters
        if met is None:
            return
        begin, self.stop = met
        at = self._places[begin] if begin < len(self._places) else start
        del self._places[first:]
        self.text = self.text[:at]
        self.spans = [(min(a, at), min(b, at)) for a, b in self.spans]


def _borders(text: str) -> list[int]:
    """Of each beginning of a text, how long the longest shorter beginning is that it ends with."""
    borders, length = [0] * len(text), 0
    for index in range(1, len(text)):
        while length and text[length] != text[index]:
            length = borders[length - 1]
        length += text[length] == text[index]
        borders[index] = length
    return borders
