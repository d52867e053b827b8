"""Marks: random strings that are put into texts before a chat template renders them, and found in its output."""

from __future__ import annotations

import re
import secrets
from collections.abc import Hashable, Iterable, Sequence
from itertools import pairwise
from typing import Generic, TypeVar

NUMBER_DIGITS = 8  # of a mark

_NUMBER = re.compile(rf"[0-9]{{{NUMBER_DIGITS}}}~")

Owner = TypeVar("Owner", bound=Hashable)


class Marks(Generic[Owner]):
    """The marks of one run of a template, each with an owner that tells it from the others.

    Args:
        prefix: begins all marks; no text contains it.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._owners: list[Owner] = []

    def put(self, text: str, marks: Sequence[tuple[int, Owner]]) -> str:
        """The text with marks at code points, given in ascending order."""
        pieces = []
        offsets = [offset for offset, _ in marks]
        for (start, end), (_, owner) in zip(pairwise((0, *offsets)), marks, strict=True):
            pieces.append(f"{text[start:end]}{self._prefix}{len(self._owners):0{NUMBER_DIGITS}d}~")
            self._owners.append(owner)
        return "".join((*pieces, text[offsets[-1] if offsets else 0 :]))

    def take(self, rendered: str) -> tuple[str, list[tuple[int, Owner]]] | None:
        """The output without marks, and their positions in it; None where the template has changed a mark."""
        first, *parts = rendered.split(self._prefix)
        pieces, position, found = [first], len(first), []
        for part in parts:
            if not _NUMBER.match(part) or int(part[:NUMBER_DIGITS]) >= len(self._owners):
                return None
            found.append((position, self._owners[int(part[:NUMBER_DIGITS])]))
            pieces.append(part[NUMBER_DIGITS + 1 :])
            position += len(pieces[-1])
        return "".join(pieces), found


def unused_prefix(texts: Iterable[str]) -> str:
    """A random beginning of all marks that none of the texts contains; its digits survive a change of case."""
    texts = list(texts)
    while True:
        prefix = f"~{secrets.randbelow(10**40):040d}"
        if not any(prefix in text for text in texts):
            return prefix
