"""Cells and blocks of a table."""

from __future__ import annotations

import pytest

from gradellm.evaluation.tables.table_model import Block, Cell
from gradellm.models import Interval


def interval(mean: float, low: float | None, high: float | None) -> Interval:
    return Interval(mean, low, high, "bootstrap", 9)


@pytest.mark.parametrize(
    ("less_random", "zero_inside"),
    [
        (None, None),
        (interval(0.1, -0.1, 0.2), True),
        (interval(0.1, 0.0, 0.2), True),
        (interval(0.1, 0.05, 0.2), False),
        (interval(-0.1, -0.2, -0.05), False),
        (interval(0.1, None, None), True),
    ],
)
def test_a_difference_from_random_that_may_be_zero(less_random: Interval | None, zero_inside: bool | None) -> None:
    assert Cell(interval(0.5, 0.4, 0.6), 0.5, less_random).zero_inside is zero_inside


@pytest.mark.parametrize(("digits", "shown"), [(1, "0.1"), (3, "0.123"), (4, "0.1235")])
def test_a_mean_has_the_digits_of_its_block(digits: int, shown: str) -> None:
    assert Block("deletion", digits, ()).formatted(Cell(interval(0.12346, None, None), None, None)) == shown
