"""Names in a text, found without a list of words for each language. Pure functions.

A name is a word with a capital letter at its beginning, but not at that of a sentence; a word of letters and digits; or
a number of four digits or more. In a sentence of capitalised words alone only digits make names. Two words are the same
name if they differ in their last two letters at most, or are equal if they have digits or fewer than three letters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from gradellm.explanation.sentences import sentences

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Name", "names_of", "stems", "words_of"]

MIN_STEM_LETTERS = 3
NUM_ENDING_LETTERS = 2
MIN_NUMBER_DIGITS = 4
_RUN = re.compile(r"[^\W_]+")
_OPENING = " \t\n\u00a0\u3000\"'“”„‘’«»‹›([{¿¡*_#>-"
_QUESTION = re.compile(r"""[?؟？;][\s"'“”‘’«»‹›)\]}」』*_]*\Z""")


@dataclass(frozen=True, slots=True)
class Name:
    """A name in a text."""

    text: str
    start: int
    """Its first code point in the text."""
    end: int
    """One past its last code point."""


def names_of(text: str) -> tuple[Name, ...]:
    """Return the names that a text asks about: those of its questions, or of all its sentences if it has none."""
    found = sentences(text)
    asked = [sentence for sentence in found if _QUESTION.search(sentence.text)] or found
    return tuple(
        Name(name.text, sentence.start + name.start, sentence.start + name.end)
        for sentence in asked
        for name in _names(sentence.text)
    )


def _names(sentence: str) -> Iterator[Name]:
    found = list(words_of(sentence))
    ends = [0, *(word.end for word in found)]
    begins = [i == 0 or _is_colon(sentence[ends[i] : word.start]) for i, word in enumerate(found)]
    inner = [word.text for word, is_first in zip(found, begins, strict=True) if not is_first]
    has_case = any(text[0].isalpha() and not text[0].isupper() for text in inner)
    for word, is_first in zip(found, begins, strict=True):
        is_capitalised = has_case and not is_first and word.text[0].isupper() and len(word.text) > 1
        if is_capitalised or _has_number(word.text):
            yield word


def _is_colon(gap: str) -> bool:
    """Whether a colon stands between two words, after which a capital letter says as little as in a first word."""
    return gap.rstrip(_OPENING).endswith((":", "："))


def _has_number(word: str) -> bool:
    digits = sum(map(str.isdigit, word))
    return digits >= MIN_NUMBER_DIGITS or 0 < digits < len(word)


def words_of(text: str) -> Iterator[Name]:
    """Yield runs of letters and digits; a script without capital letters, such as Chinese, has runs of its own."""
    for run in _RUN.finditer(text):
        start = run.start()
        if run[0].isascii():
            yield Name(run[0], start, run.end())
            continue
        for _, part in groupby(run[0], lambda char: char.isdigit() or char.lower() != char.upper()):
            word = "".join(part)
            yield Name(word, start, start + len(word))
            start += len(word)


def stems(word: str) -> frozenset[str]:
    """Return beginnings of a word, of which it shares one with each inflected form of it."""
    word = word.casefold()
    if any(map(str.isdigit, word)):
        return frozenset({word})
    lengths = range(max(MIN_STEM_LETTERS, len(word) - NUM_ENDING_LETTERS), len(word))
    return frozenset({word, *(word[:length] for length in lengths)})
