"""Groups tokens into words, and into units that share characters.

The engine segments words (`PromptToken.word`, `Token.word`). Tokens of older servers and files are segmented here: at
white space, and at characters of scripts without it.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence

    from gradellm.models import PromptToken, Token

__all__ = ["Characters", "Grouping", "Word", "characters", "is_written", "prompt_words", "words"]


@dataclass(frozen=True, slots=True)
class Word:
    """A word of the completion, with adjacent punctuation."""

    text: str
    """Without surrounding white space."""
    start: int
    """Its first code point in the completion's text."""
    end: int
    """One past its last code point."""
    token_indexes: tuple[int, ...]
    """The indexes of its tokens in the completion."""


class Grouping:
    """Groups the tokens of a completion into words, incrementally."""

    def __init__(self) -> None:
        self._segmenter = _Segmenter()
        self._textless: list[Token] = []  # part of a character; they belong to the next token's word
        self._word: list[Token] = []  # incomplete
        self._number: int | None = None

    def push(self, token: Token) -> list[Token]:
        """Add the next token. Return the tokens of the word that it completes, if any."""
        if not (token.text or token.special):
            self._textless.append(token)
            return []
        starts = self._segmenter.starts(token.text, token.special)
        if token.word is not None:
            starts, self._number = token.word != self._number, token.word
        if token.special:
            self._flush_textless()
        completed = self._word if starts else []
        if starts:
            self._word = []
        self._flush_textless()
        self._word.append(token)
        return completed

    def finish(self) -> list[Token]:
        """Return the tokens of the last word."""
        self._flush_textless()
        completed, self._word = self._word, []
        return completed

    def _flush_textless(self) -> None:
        self._word += self._textless
        self._textless = []


def words(tokens: Iterable[Token]) -> Iterator[Word]:
    """Yield the words of a completion. Special tokens without text, such as an end of turn, belong to no word."""
    grouping = Grouping()
    for group in [*map(grouping.push, tokens), grouping.finish()]:
        text = "".join(token.text for token in group)
        bare = text.strip()
        if bare:
            start = group[0].start + len(text) - len(text.lstrip())
            yield Word(bare, start, start + len(bare), tuple(token.index for token in group))


def prompt_words(text: str, tokens: Sequence[PromptToken]) -> tuple[tuple[str, int], ...]:
    """Return for each prompt token its word, and the word's offset in the prompt's text."""
    words_by_token: list[tuple[str, int]] = []
    for _, group in groupby(zip(_numbers(text, tokens), tokens, strict=True), key=lambda pair: pair[0]):
        members = [token for _, token in group]
        start, end = min(token.start for token in members), max(token.end for token in members)
        word = text[start:end].strip() or text[start:end] or members[0].text
        words_by_token += [(word, start + text[start:end].find(word) if end > start else start)] * len(members)
    return tuple(words_by_token)


def _numbers(text: str, tokens: Sequence[PromptToken]) -> Iterator[int]:
    if all(token.word is not None for token in tokens):
        yield from (token.word or 0 for token in tokens)
        return
    segmenter, number, end = _Segmenter(), -1, 0
    for token in tokens:
        number += segmenter.starts(text[max(end, token.start) : token.end], not is_written(token), token.message)
        end = max(end, token.end)
        yield number


class _Segmenter:
    """Segments tokens into words without the engine's word indexes."""

    def __init__(self) -> None:
        self._before: Hashable = None
        self._is_blank = True  # whether the word has white space only
        self._ends = False  # whether the word ends with its last character

    def starts(self, text: str, apart: bool, speaker: Hashable = None) -> bool:
        """Return whether the next token begins a word. With `apart` it is a word of its own."""
        must_start = apart or self._before != (speaker,)
        starts = must_start or (text != "" and not self._is_blank and (self._ends or _is_boundary(text[0])))
        self._is_blank = (starts or self._is_blank) and not text.strip()
        self._ends = _is_boundary(text[-1]) if text else self._ends
        self._before = None if apart else (speaker,)
        return starts


def _is_boundary(char: str) -> bool:
    return char.isspace() or unicodedata.east_asian_width(char) == "W"


def is_written(token: PromptToken) -> bool:
    """Whether a token belongs to a message's text, not to the template, and is not special."""
    return token.role != "template" and not token.special


@dataclass(frozen=True, slots=True)
class Characters:
    """Prompt tokens that are drawn as one unit: a single token, or all tokens that share a character."""

    text: str
    start: int
    end: int
    token_indexes: tuple[int, ...]


def characters(text: str, tokens: Sequence[PromptToken]) -> Iterator[Characters]:
    """Yield units of prompt tokens such that every character of the text is drawn once.

    Overlapping tokens share a character; a token without text is a part of the next character.
    """
    indexes: list[int] = []
    start = end = 0  # of the unit
    for index, token in enumerate(tokens):
        if indexes:
            before = tokens[indexes[-1]]
            is_part = end == start and not before.special and not token.special
            is_part = is_part and (before.role, before.message) == (token.role, token.message)
            if not (is_part or start <= token.start < min(end, token.end)):
                yield Characters(text[start:end] or before.text, start, end, tuple(indexes))
                indexes = []
        if not indexes or end == start:
            start = end = token.start
        indexes.append(index)
        end = max(end, token.end)
    if indexes:
        yield Characters(text[start:end] or tokens[indexes[-1]].text, start, end, tuple(indexes))
