"""Pushes a token's attribution back through generated tokens to the prompt. Pure functions.

1. A token's row, its negative scores left out and divided by its sum, is a distribution over the columns before it:
   G over generated tokens, P over the prompt. A row without positive scores is unexplained.
2. The start, a distribution over the selected tokens, moves along the rows until it is in the prompt or unexplained:
   visits x = start (I - G)^-1, shares of the prompt x P. A token's row has earlier tokens alone, so G is strictly
   triangular, and one walk from the last token to the first solves the system (back substitution).
3. Shares and unexplained add up to the start's sum, because each row does.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

__all__ = ["Flow", "Reason", "TokenRow", "push_back"]

Reason = Literal[
    "no_positive_score", "not_finite", "other_target", "top_k_sources", "forced", "interrupted", "not_explained"
]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token's row with what it does not tell; scores below 0 count as 0."""

    prompt: Sequence[float] = ()
    """Scores of the prompt's columns, in order; columns beyond its end have none."""
    generated: Mapping[int, float] = field(default_factory=dict)
    """Scores of earlier tokens of the completion, by index."""
    missing: Mapping[Reason, float] = field(default_factory=dict)
    """Scores of columns that cannot be followed, by reason."""
    reason: Reason = "no_positive_score"
    """Why all of it is unexplained, if no score is above 0."""


@dataclass(frozen=True, slots=True)
class Flow:
    """Where the start's mass went. Shares of the start, which sums to 1."""

    shares: tuple[float, ...]
    """By column of the prompt."""
    direct: tuple[float, ...]
    """The part of `shares` that came in one step, by column of the prompt."""
    through_members: tuple[float, ...]
    """The part of `shares` that passed a token of `members` on its way, by column of the prompt."""
    entered: Mapping[int, float]
    """What passed through each group of tokens, by the group's number; the start's own group is not passed."""
    passed_members: float
    """What passed a token of `members`, unexplained or not."""
    unexplained: Mapping[tuple[Reason, int], float]
    """By reason and the token where it stayed."""


def push_back(
    start: Mapping[int, float],
    row_of: Callable[[int], TokenRow],
    *,
    num_columns: int,
    groups: Mapping[int, int],
    members: Collection[int] = (),
) -> Flow:
    """Follow `start`, shares by token index, back to the prompt's `num_columns` columns.

    `groups` are runs of adjacent tokens, such as words: a path goes back in the text and so enters each at most once.
    Time is proportional to the scores of the rows that are visited.
    """
    shares, direct, marked = [0.0] * num_columns, [0.0] * num_columns, [0.0] * num_columns
    entered: dict[int, float] = defaultdict(float)
    unexplained: dict[tuple[Reason, int], float] = defaultdict(float)
    visits: dict[int, float] = defaultdict(float, start)
    marked_visits: dict[int, float] = defaultdict(float)  # what passed a member before or now
    passed = 0.0
    for token in range(max(start), -1, -1):
        mass, marked_mass = visits[token], marked_visits[token]
        if not mass:
            continue
        row = row_of(token)
        total = _total(row)
        if not total:
            unexplained[row.reason, token] += mass
            passed += marked_mass
            continue
        first = start.get(token, 0.0)
        for column, score in enumerate(row.prompt):
            if score > 0:
                share = score / total
                shares[column] += mass * share
                direct[column] += first * share
                marked[column] += marked_mass * share
        for reason, score in row.missing.items():
            unexplained[reason, token] += mass * (score / total)
            passed += marked_mass * (score / total)
        for earlier, score in row.generated.items():
            if score > 0:
                share = score / total
                visits[earlier] += mass * share
                marked_visits[earlier] += (mass if earlier in members else marked_mass) * share
                if groups[earlier] != groups[token]:
                    entered[groups[earlier]] += mass * share
    return Flow(tuple(shares), tuple(direct), tuple(marked), entered, passed + math.fsum(marked), unexplained)


def _total(row: TokenRow) -> float:
    positive = [score for score in (*row.prompt, *row.generated.values(), *row.missing.values()) if score > 0]
    return math.fsum(positive)
