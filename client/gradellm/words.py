"""Generated tokens, put together to the words that people read."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gradellm.results import Token

__all__ = ["Word", "first_word_length", "words"]


@dataclass(frozen=True, slots=True)
class Word:
    """A word of the completion: its tokens between white space; of scripts without any, a character."""

    text: str
    """Without the white space around it."""
    start: int
    """Its first code point in the completion's text."""
    end: int
    """One past its last code point."""
    token_indexes: tuple[int, ...]
    """The places of its tokens in the completion."""


def words(tokens: Sequence[Token]) -> Iterator[Word]:
    """Yield the words of a completion. Special tokens without text, such as an end of turn, are in none."""
    left = list(tokens)
    while left:
        length = first_word_length(left)
        its, left = left[:length], left[length:]
        text = "".join(token.text for token in its)
        bare = text.strip()
        if bare:
            start = its[0].start + len(text) - len(text.lstrip())
            yield Word(bare, start, start + len(bare), tuple(token.index for token in its))


def first_word_length(tokens: Sequence[Token]) -> int:
    """Count the tokens of the first word, up to where another begins. White space belongs to the word after it."""
    text = ""
    for length, token in enumerate(tokens):
        if length and _begins_word(text, tokens[length - 1], token):
            return length
        text += token.text
    return len(tokens)


def _begins_word(text: str, before: Token, token: Token) -> bool:
    """Whether a token begins a word, with `text` of the one under way before it."""
    if before.special or token.special:
        return True
    first, last = token.text[:1], text[-1:]
    apart = first.isspace() or last.isspace() or _is_ideograph(first) or (_is_ideograph(last) and first != "")
    return apart and not (text == "" or text.isspace())


def _is_ideograph(char: str) -> bool:
    """Whether words are written without spaces around it."""
    return char != "" and unicodedata.east_asian_width(char) == "W"
