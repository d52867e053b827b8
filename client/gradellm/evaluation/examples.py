"""Examples of a data set, and how they are sampled."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradellm.errors import GradellmError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["BadRow", "DataError", "Example", "Rows", "Span", "digest", "sample"]

Span = tuple[int, int]
"""A span of text: its first code point, and one past its last."""


class DataError(GradellmError, ValueError):
    """A data source that cannot be used at all."""


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt to evaluate. Exactly one of `messages` and `prompt` is not None."""

    id: str
    """Unique within its source."""
    origin: str
    """Its position in the source: "reviews.jsonl, line 12", or "row 12" of a source without lines."""
    messages: tuple[tuple[str, str], ...] | None
    """The prompt as a chat of (role, content), the user's message last."""
    prompt: str | None
    """The prompt as one text."""
    label: str | None
    """The gold label, one of the preset's label words; None if the data has none."""
    rationale: tuple[Span, ...] | None
    """The human rationale in code points of the last message or of `prompt`, sorted and without overlap. Empty for an
    empty rationale, None for a row without one."""
    fields: Mapping[str, str]
    """The values of the prompt's template fields."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that makes no example."""

    line: int
    """The line in the file on which it begins; its row, from 1, in a source without lines."""
    reason: str
    """The problem as a predicate: "has an empty text"."""
    origin: str
    """Its position in the source, as `Example.origin`."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a source."""

    examples: tuple[Example, ...]
    bad: tuple[BadRow, ...]


def sample(rows: Iterable[Example], n: int, seed: int, *, balance_by_label: bool = False) -> tuple[Example, ...]:
    """Sample `n` examples at random, or (`balance_by_label`) equal numbers of each label that occurs.

    Examples are ordered by the SHA-256 of seed and id, which is independent of the machine and of the order of `rows`.
    The result has this order, label by label in turn if balanced, so that every prefix is a fair sample too, and a
    smaller `n` with the same seed gives a prefix of a larger one. If n is not a multiple of the number of labels, the
    alphabetically first labels have one example more.

    Raises DataError if there are fewer than `n` examples.
    """
    if n < 1:
        raise DataError(f"a sample must have at least 1 example, not {n}")
    ordered = sorted(rows, key=lambda example: _sort_key(seed, example.id))
    if n > len(ordered):
        raise DataError(f"a sample of {n} examples was requested, but the data has {len(ordered)}; reduce --sample")
    if not balance_by_label:
        return tuple(ordered[:n])

    by_label: dict[str, list[Example]] = {}
    for example in ordered:
        if example.label is None:
            raise DataError(f"{example.origin} has no label, so the sample cannot be balanced; sample without balance")
        by_label.setdefault(example.label, []).append(example)
    if len(by_label) < 2:
        raise DataError(
            f"labels cannot be balanced: all {len(ordered)} examples have the label {next(iter(by_label))}; "
            "sample without balance"
        )
    each, more = divmod(n, len(by_label))
    groups = [by_label[label] for label in sorted(by_label)]
    for index, group in enumerate(groups):
        count = each + (index < more)
        if count > len(group):
            raise DataError(
                f"a balanced sample of {n} examples needs {count} with the label {group[0].label}, but the data has "
                f"{len(group)}; request at most {len(groups) * min(map(len, groups))}, or sample without balance"
            )
    rounds = itertools.zip_longest(*(group[: each + (index < more)] for index, group in enumerate(groups)))
    return tuple(example for row in rounds for example in row if example is not None)


def digest(rows: Iterable[Example]) -> str:
    """Return a SHA-256 of prompts, labels and rationales, regardless of their order: the data in a run's identity."""
    lines = sorted(json.dumps([row.id, row.messages, row.prompt, row.label, row.rationale]) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _sort_key(seed: int, example_id: str) -> bytes:
    return hashlib.sha256(f"{seed}:{example_id}".encode(errors="surrogatepass")).digest()
