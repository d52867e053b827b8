"""Incremental detokenisation: text of whole characters only, and stop texts.

A token may be a part of a character (byte-level vocabularies), and its text may depend on the token before it (some
tokenizers drop a leading space from the first token). So ids are decoded in a short window, and a token's text is the
difference to the window's text without it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from operator import itemgetter

REPLACEMENT = "\ufffd"  # text of an incomplete character
CONTEXT_TOKENS = 6  # of the prompt, in the first window: the first generated token's text depends on them
MAX_CHARACTER_TOKENS = 4  # bytes of the longest character in UTF-8
MAX_PENDING_TOKENS = 4 * MAX_CHARACTER_TOKENS  # without a complete character at their end, decoded again each time

Decode = Callable[[Sequence[int]], str]


class IncrementalDetokenizer:
    """The text of a growing sequence of token ids.

    The window starts with the last complete piece of text: far enough back for its tokens to decode as in the whole
    sequence, and never inside a character. It is bounded: bytes that cannot become part of a character are emitted as
    replacement characters.
    """

    def __init__(self, decode: Decode, context: Sequence[int] = ()) -> None:
        """Start after `context`, ids whose text is complete."""
        self._decode = decode
        # A window that starts inside a character makes byte-fallback decoders replace the following characters too.
        lengths = range(CONTEXT_TOKENS, CONTEXT_TOKENS + MAX_CHARACTER_TOKENS)
        complete = (n for n in lengths if not decode(context[-n:]).startswith(REPLACEMENT))
        self._window = list(context[-next(complete, CONTEXT_TOKENS) :])
        self._emitted = len(self._window)  # ids of the window whose text was emitted
        self._emitted_text = decode(self._window)

    def push(self, token_id: int) -> str:
        """The text that a token adds; empty while a character is incomplete."""
        self._window.append(token_id)
        text = self._decode(self._window)
        if not text.endswith(REPLACEMENT):
            return self._emit(text)
        num_pending = len(self._window) - self._emitted
        if num_pending <= MAX_CHARACTER_TOKENS:
            return ""
        # The oldest pending token cannot be part of a character that later tokens complete.
        for num_kept in range(1, MAX_CHARACTER_TOKENS):
            head, tail = self._window[:-num_kept], self._window[-num_kept:]
            head_text = self._decode(head)
            if head_text + self._decode(tail) == text:
                self._window = head
                added = self._emit(head_text)
                self._window += tail
                return added
        return self._emit(text) if num_pending >= MAX_PENDING_TOKENS else ""

    @property
    def is_incomplete(self) -> bool:
        """Whether the last tokens are parts of a character that has not come whole."""
        return len(self._window) > self._emitted

    def flush(self) -> str:
        """The text of an incomplete character at the end: replacement characters."""
        return self._emit(self._decode(self._window))

    def _emit(self, text: str) -> str:
        if text.startswith(self._emitted_text):
            added = text[len(self._emitted_text) :]
        else:  # a byte-fallback decoder replaces whole characters next to an invalid byte; these were emitted before
            added = self._decode(self._window[self._emitted :])
        if added:
            # The piece just emitted is the context of the next one; a special token, without text, would be no context.
            self._window = self._window[self._emitted :][-MAX_PENDING_TOKENS:]
            self._emitted_text = self._decode(self._window)
        elif len(self._window) > MAX_PENDING_TOKENS + CONTEXT_TOKENS:  # many tokens without text
            self._window = self._window[-CONTEXT_TOKENS:]
            self._emitted_text = self._decode(self._window)
        else:
            self._emitted_text = text
        self._emitted = len(self._window)
        return added


class StopMatcher:
    """Finds stop texts in a text that arrives character by character.

    One automaton for each stop text (Knuth-Morris-Pratt): amortised constant time a character.

    Attributes:
        held: length of the longest end of the text that begins a stop text.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(texts)
        self._borders = [_borders(text) for text in self._texts]
        self._states = [0] * len(self._texts)
        self.held = 0

    def push(self, character: str) -> list[str]:
        """The stop texts that end with this character."""
        matched = []
        for index, (text, borders) in enumerate(zip(self._texts, self._borders, strict=True)):
            state = self._states[index]
            while state and text[state] != character:
                state = borders[state - 1]
            state += text[state] == character
            if state == len(text):
                matched.append(text)
                state = borders[state - 1]
            self._states[index] = state
        self.held = max(self._states, default=0)
        return matched


class CompletionText:
    """The text of a completion with each token's span, truncated before the first stop text.

    Tokens whose text may begin a stop text are held back (`num_safe_tokens`). Special tokens have no text in the
    completion, but may be part of a stop text: stop texts are searched in the text with special tokens written out.

    Attributes:
        text: the text so far.
        stop: the stop text that was found; None before.
        spans: each token's first code point, and one past its last.
    """

    def __init__(
        self,
        decode: Decode,
        context: Sequence[int],
        stop: Sequence[str] = (),
        special_text: Callable[[int], str] = lambda token_id: "",
        *,
        num_unstopped: int = 0,
        may_end_later: bool = False,
    ) -> None:
        """Start after `context`; `special_text` is a special token's text in stop texts, empty for other tokens.

        A stop text that ends within the first `num_unstopped` tokens is a text like any other.

        With `may_end_later`, `finish` may be called long after the last token was added: one that ends within a
        character is held back, as its text depends on whether another follows.
        """
        self._num_unstopped, self._may_end_later = num_unstopped, may_end_later
        self._detokenizer = IncrementalDetokenizer(decode, context)
        self._special_text = special_text
        self._matcher = StopMatcher(stop) if stop else None
        # Position in `text` of each character that stop texts are searched in; a special token's characters share one.
        self._positions: list[int] = []
        self.text = ""
        self.stop: str | None = None
        self.spans: list[tuple[int, int]] = []
        self._finished = False

    def push(self, token_id: int, *, has_text: bool = True) -> None:
        """Add the next token; `has_text` is False for one that ends the completion by its id."""
        text = self._detokenizer.push(token_id) if has_text else ""
        self._add(text, self._special_text(token_id) if self._matcher else "")

    def finish(self) -> None:
        """End the text: an incomplete character belongs to the last token, and nothing is held back."""
        self._finished = True
        if self.stop is None and self.spans:
            start, _ = self.spans[-1]
            self._append(self._detokenizer.flush())
            self.spans[-1] = (min(start, len(self.text)), len(self.text))

    @property
    def num_safe_tokens(self) -> int:
        """Number of tokens whose text later tokens cannot change."""
        safe = len(self.text)
        if self._matcher and self._matcher.held and not self._finished and self.stop is None:
            safe = self._positions[-self._matcher.held]
        count = bisect_right(self.spans, safe, key=itemgetter(1))  # span ends ascend
        if self._may_end_later and not self._finished and self._detokenizer.is_incomplete:
            return min(count, len(self.spans) - 1)
        return count

    def _add(self, piece: str, special: str) -> None:
        start = len(self.text)
        if self.stop is None:  # tokens of a given completion may follow a stop text; they have no text
            self._append(piece)
            if special:
                self._search(special, in_text=False)
        self.spans.append((min(start, len(self.text)), len(self.text)))

    def _append(self, piece: str) -> None:
        if self._matcher is None:
            self.text += piece
        else:
            self._search(piece, in_text=True)

    def _search(self, characters: str, *, in_text: bool) -> None:
        """Add characters, and truncate the text before a stop text that they complete.

        The stop text that begins first is found; of several that begin there, the first in lexical order.
        """
        if self._matcher is None or self.stop is not None:
            return
        start, found = len(self.text), None
        first = len(self._positions)
        for offset, character in enumerate(characters):
            self._positions.append(start + offset * in_text)
            matched = self._matcher.push(character)
            for text in matched if len(self.spans) >= self._num_unstopped else ():
                begin = len(self._positions) - len(text)
                found = min(found, (begin, text)) if found else (begin, text)
        if in_text:
            self.text += characters
        if found is None:
            return
        begin, self.stop = found
        end = self._positions[begin] if begin < len(self._positions) else start
        del self._positions[first:]
        self.text = self.text[:end]
        self.spans = [(min(a, end), min(b, end)) for a, b in self.spans]


def _borders(text: str) -> list[int]:
    """The KMP failure function: for each prefix, the length of its longest proper prefix that is also its suffix."""
    borders, length = [0] * len(text), 0
    for index in range(1, len(text)):
        while length and text[length] != text[index]:
            length = borders[length - 1]
        length += text[length] == text[index]
        borders[index] = length
    return borders
