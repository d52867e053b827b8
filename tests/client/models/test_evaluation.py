"""Results of an evaluation as texts."""

from __future__ import annotations

import pytest

from gradellm.models import Interval


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.12345, 0.1, 0.2, "bootstrap", 9), "0.123 (0.100 to 0.200)"),
        (Interval(-0.5, None, None, "monte_carlo", 1), "-0.500"),
        (Interval(0.5, 0.0, None, None, 1), "0.500"),
    ],
)
def test_an_interval_reads_with_its_bounds_where_it_has_both(interval: Interval, text: str) -> None:
    assert str(interval) == text
