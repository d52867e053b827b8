"""Explanations of streams that were disturbed, beside those of streams that nobody disturbed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from gradellm import Explanation
from trials.report import Finding

TIE = 1e-5  # of log-probabilities, and what scores may differ by


@dataclass
class Compared:
    """Explanations beside those of undisturbed runs."""

    broken: int = 0
    other_texts: int = 0
    ties: int = 0
    rows: int = 0
    largest: float = 0.0
    largest_relative: float = 0.0
    rows_above: int = 0
    rows_other: int = 0  # in any bit

    def take(self, ours: Explanation, theirs: Explanation) -> None:
        for one, other in zip_longest(ours.tokens, theirs.tokens):
            if one is None or other is None or one.id != other.id:
                best, second = (alternative.logprob for alternative in (one or other).alternatives)
                self.ties += abs(best - second) < TIE
                self.other_texts += abs(best - second) >= TIE
                return  # all that follows is another text
            row, its = ours.row(one.index), theirs.row(one.index)
            if row is None or its is None:
                self.broken += 1
                return
            self.rows += 1
            peak = max(map(abs, its.scores))
            difference = max(abs(a - b) for a, b in zip(row.scores, its.scores, strict=True))
            self.largest = max(self.largest, difference / max(1.0, peak))
            self.largest_relative = max(self.largest_relative, difference / (peak or 1.0))
            self.rows_other += difference > 0
            self.rows_above += difference > TIE * peak


def compared(pairs: Sequence[tuple[Explanation | None, Explanation | None]]) -> Compared:
    found = Compared()
    for ours, theirs in pairs:
        if ours is None or theirs is None:
            found.broken += 1
        else:
            found.take(ours, theirs)
    return found


def unchanged(found: Compared, scores: float = TIE) -> list[Finding]:
    """What must hold of streams that were disturbed; `scores` is what a row may differ by."""
    return [
        Finding("streams that did not finish whole", str(found.broken), "none", found.broken == 0),
        Finding(
            "texts that differ from the undisturbed run's",
            f"{found.other_texts}, and {found.ties} at ties",
            "none but at ties",
            found.other_texts == 0,
        ),
        Finding(
            "largest difference of a score, of 1 or its row's largest",
            f"{found.largest:.1e}, of {found.rows:,} rows",
            f"{scores:.0e}",
            found.largest <= scores,
        ),
    ]
