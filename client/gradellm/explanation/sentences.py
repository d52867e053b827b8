"""Splits an answer into sentences, in linear time and without a list of words for each language.

The rules are those of UAX #29 that matter in answers: a sentence ends at a line break, at a terminator of a script
without spaces ("。"), and at ".", "!" or "?" before white space. A full stop does not end it before a small letter,
after an initial or an abbreviation, or as part of a list item's number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Sentence", "sentences"]


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a text, without surrounding white space."""

    text: str
    start: int
    """Its first code point in the text."""
    end: int
    """One past its last code point."""


_STOP = "[.!?…؟۔।॥։።]"
_CLOSING = r"""["'”’»)\]}」』）】〉》*_]*+"""
_END = re.compile(
    rf"""\n                                          # a line
    | [。．！？｡]+ [」』）】〉》”’]*                  # scripts without spaces between sentences
    | (?<! {_STOP} ) (?P<stop> {_STOP}++ ) {_CLOSING} (?=\s)  # others; no run of stops is read twice""",
    re.VERBOSE,
)
_WORD_BEFORE = re.compile(r"[\w.]*\Z")
_MAX_WORD = 16  # code points; a longer word is no abbreviation
_ABBREVIATIONS = {
    "mr", "mrs", "ms", "dr", "prof", "sr", "jr", "st", "vs", "etc", "e.g", "i.e", "cf", "al", "fig", "eq", "vol", "pp",
    "approx", "inc", "ltd", "co", "corp", "dept", "est", "gen", "gov", "hon", "lt", "mt", "rev", "sgt",
    "bzw", "ca", "d.h", "ggf", "nr", "usw", "z.b", "p.ex",
}  # fmt: skip
_ITEM = re.compile(r"[-*+•–#>\s]*\(?(?:\d{1,3}|[A-Za-z])\Z")  # up to the full stop of a list item's number


def sentences(text: str) -> tuple[Sentence, ...]:
    """Return the sentences of a text in order. They do not overlap, and hold all of its letters and digits."""
    return tuple(_sentences(text))


def _sentences(text: str) -> Iterator[Sentence]:
    start = 0
    for match in _END.finditer(text):
        if match["stop"] is not None and not _ends(text, start, match):
            continue
        yield from _bare(text, start, match.end())
        start = match.end()
    yield from _bare(text, start, len(text))


def _bare(text: str, start: int, end: int) -> Iterator[Sentence]:
    """Yield the span without white space around it, unless it has neither letters nor digits."""
    part = text[start:end]
    if any(map(str.isalnum, part)):
        bare = part.strip()
        start += len(part) - len(part.lstrip())
        yield Sentence(bare, start, start + len(bare))


def _ends(text: str, start: int, match: re.Match[str]) -> bool:
    """Whether a terminator before white space ends the sentence that begins at `start`."""
    stop, at = match["stop"], match.start()
    following = text[match.end() : match.end() + _MAX_WORD].lstrip()
    if stop[-1] in ".…" and following[:1].islower():
        return False
    if stop != ".":
        return True
    if at - start <= _MAX_WORD and _ITEM.match(text[start:at]):
        return False
    found = _WORD_BEFORE.search(text[max(start, at - _MAX_WORD) : at])
    word = found[0] if found else ""
    is_initial = len(word) == 1 and word.isupper() and word != "I"
    return not is_initial and word.lower() not in _ABBREVIATIONS
