"""Compares the explanations of disturbed streams with those of undisturbed ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from gradellm import Explanation
from trials.report import Finding

TIE = 1e-5  # log-probabilities that differ by less are a tie; scores may differ by as much


@dataclass
class Differences:
    """Differences of explanations from their reference explanations.

    Attributes:
        broken: explanations that are missing or lack a row.
        other_texts: texts that differ where the reference's two best tokens are further apart than a tie.
        ties: texts that differ where the two best tokens tie.
        rows: attribution rows compared.
        largest: largest difference of a score, relative to its row's largest or 1, whichever is more.
        largest_relative: the same, relative to the row's largest alone.
        rows_above: rows whose largest relative difference is above `TIE`.
        rows_unequal: rows that differ in any bit.
    """

    broken: int = 0
    other_texts: int = 0
    ties: int = 0
    rows: int = 0
    largest: float = 0.0
    largest_relative: float = 0.0
    rows_above: int = 0
    rows_unequal: int = 0

    def add(self, explanation: Explanation, reference: Explanation) -> None:
        """Compare token by token, up to the first token that differs."""
        for token, expected in zip_longest(explanation.tokens, reference.tokens):
            if token is None or expected is None or token.id != expected.id:
                best, second = (alternative.logprob for alternative in (token or expected).alternatives)
                self.ties += abs(best - second) < TIE
                self.other_texts += abs(best - second) >= TIE
                return  # the texts diverge from here
            row, expected_row = explanation.row(token.index), reference.row(token.index)
            if row is None or expected_row is None:
                self.broken += 1
                return
            self.rows += 1
            peak = max(map(abs, expected_row.scores))
            difference = max(abs(a - b) for a, b in zip(row.scores, expected_row.scores, strict=True))
            self.largest = max(self.largest, difference / max(1.0, peak))
            self.largest_relative = max(self.largest_relative, difference / (peak or 1.0))
            self.rows_unequal += difference > 0
            self.rows_above += difference > TIE * peak


def compare(pairs: Sequence[tuple[Explanation | None, Explanation | None]]) -> Differences:
    """Differences over pairs of (explanation, reference); a missing one of either counts as broken."""
    differences = Differences()
    for explanation, reference in pairs:
        if explanation is None or reference is None:
            differences.broken += 1
        else:
            differences.add(explanation, reference)
    return differences


def unchanged(differences: Differences, tolerance: float = TIE) -> list[Finding]:
    """Findings that hold where streams are complete and unchanged; `tolerance` is for scores."""
    return [
        Finding("streams that did not finish whole", str(differences.broken), "none", differences.broken == 0),
        Finding(
            "texts that differ from the undisturbed run's",
            f"{differences.other_texts}, and {differences.ties} at ties",
            "none but at ties",
            differences.other_texts == 0,
        ),
        Finding(
            "largest difference of a score, of 1 or its row's largest",
            f"{differences.largest:.1e}, of {differences.rows:,} rows",
            f"{tolerance:.0e}",
            differences.largest <= tolerance,
        ),
    ]
