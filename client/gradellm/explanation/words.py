"""Tokens, put together to the words that people read, and to the characters that they see.

Which tokens make a word is the engine's to say: `PromptToken.word` and `Token.word`. What an older server sent, or an
older file holds, is parted at white space, and beside characters that are written without any.
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
    """A word of the completion, with the punctuation beside it."""

    text: str
    """Without the white space around it."""
    start: int
    """Its first code point in the completion's text."""
    end: int
    """One past its last code point."""
    token_indexes: tuple[int, ...]
    """The places of its tokens in the completion."""


class Grouping:
    """A completion's tokens by word, while they come."""

    def __init__(self) -> None:
        self._spaces = _Spaces()
        self._parts: list[Token] = []  # without text: they go with what follows
        self._word: list[Token] = []  # to which more may come
        self._number: int | None = None

    def push(self, token: Token) -> list[Token]:
        """Take the next token; the tokens of a word that it shows to be whole, or none."""
        if not (token.text or token.special):
            self._parts.append(token)
            return []
        starts = self._spaces.starts(token.text, token.special)
        if token.word is not None:
            starts, self._number = token.word != self._number, token.word
        if token.special:
            self._take_parts()
        whole = self._word if starts else []
        if starts:
            self._word = []
        self._take_parts()
        self._word.append(token)
        return whole

    def finish(self) -> list[Token]:
        """The last word's tokens: none follow."""
        self._take_parts()
        whole, self._word = self._word, []
        return whole

    def _take_parts(self) -> None:
        self._word += self._parts
        self._parts = []


def words(tokens: Iterable[Token]) -> Iterator[Word]:
    """Yield the words of a completion. Special tokens without text, such as an end of turn, are in none."""
    grouping = Grouping()
    for group in [*map(grouping.push, tokens), grouping.finish()]:
        text = "".join(token.text for token in group)
        bare = text.strip()
        if bare:
            start = group[0].start + len(text) - len(text.lstrip())
            yield Word(bare, start, start + len(bare), tuple(token.index for token in group))


def prompt_words(text: str, tokens: Sequence[PromptToken]) -> tuple[tuple[str, int], ...]:
    """Return for each token of a prompt the word that it belongs to, and where that begins in the prompt's text."""
    found: list[tuple[str, int]] = []
    for _, group in groupby(zip(_numbers(text, tokens), tokens, strict=True), key=lambda pair: pair[0]):
        its = [token for _, token in group]
        start, end = min(token.start for token in its), max(token.end for token in its)
        word = text[start:end].strip() or text[start:end] or its[0].text
        found += [(word, start + text[start:end].find(word) if end > start else start)] * len(its)
    return tuple(found)


def _numbers(text: str, tokens: Sequence[PromptToken]) -> Iterator[int]:
    if all(token.word is not None for token in tokens):
        yield from (token.word or 0 for token in tokens)
        return
    spaces, number, end = _Spaces(), -1, 0
    for token in tokens:
        number += spaces.starts(text[max(end, token.start) : token.end], not is_written(token), token.message)
        end = max(end, token.end)
        yield number


class _Spaces:
    """Parts tokens where no engine has said what their words are."""

    def __init__(self) -> None:
        self._before: Hashable = None
        self._is_blank = True  # the word has white space only, so far
        self._ends = False  # with its last character

    def starts(self, text: str, apart: bool, speaker: Hashable = None) -> bool:
        """Whether the next token begins a word; `apart` where it is a word of its own."""
        must_start = apart or self._before != (speaker,)
        starts = must_start or (text != "" and not self._is_blank and (self._ends or _is_apart(text[0])))
        self._is_blank = (starts or self._is_blank) and not text.strip()
        self._ends = _is_apart(text[-1]) if text else self._ends
        self._before = None if apart else (speaker,)
        return starts


def _is_apart(char: str) -> bool:
    return char.isspace() or unicodedata.east_asian_width(char) == "W"


def is_written(token: PromptToken) -> bool:
    """Whether a token is a person's or the model's own, not the template's."""
    return token.role != "template" and not token.special


@dataclass(frozen=True, slots=True)
class Characters:
    """Tokens of a prompt that are drawn as one: most often a single one, else all that share a character."""

    text: str
    start: int
    end: int
    token_indexes: tuple[int, ...]


def characters(text: str, tokens: Sequence[PromptToken]) -> Iterator[Characters]:
    """Yield a prompt's tokens as they can be drawn, so that every character of its text is drawn once.

    Tokens that overlap share a character; a token without text is a part of the next character.
    """
    its: list[int] = []
    start = end = 0  # of what its tokens cover
    for index, token in enumerate(tokens):
        if its:
            before = tokens[its[-1]]
            is_part = end == start and not before.special and not token.special
            is_part = is_part and (before.role, before.message) == (token.role, token.message)
            if not (is_part or start <= token.start < min(end, token.end)):
                yield Characters(text[start:end] or before.text, start, end, tuple(its))
                its = []
        if not its or end == start:
            start = end = token.start
        its.append(index)
        end = max(end, token.end)
    if its:
        yield Characters(text[start:end] or tokens[its[-1]].text, start, end, tuple(its))
