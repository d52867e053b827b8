"""Comparisons of numbers, and of dataclasses field by field."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import pytest

from gradellm.explanation.verification.fields import abbreviated, distance, field_problems, is_close, is_unset


@dataclass
class Record:
    """A dataclass whose last field was added later."""

    name: str
    count: int
    added: int | None = None


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (1.0, 1.5, 0.5),
        (math.inf, math.inf, 0.0),
        (math.inf, -math.inf, math.inf),
        (math.nan, math.nan, 0.0),
        (math.nan, 1.0, math.inf),
        (1.0, math.nan, math.inf),
    ],
)
def test_distances(first: float, second: float, expected: float) -> None:
    assert distance(first, second) == expected


def test_closeness_is_relative_to_large_values_only() -> None:
    assert is_close(0.0, 0.001, 1e-3)
    assert not is_close(0.0, 0.002, 1e-3)
    assert is_close(-20.0, -20.01, 1e-3)


def test_an_infinite_expectation_is_close_to_itself_only() -> None:
    assert is_close(-math.inf, -math.inf, 1e-3)
    assert not is_close(-1e30, -math.inf, 1e-3)
    assert not is_close(math.nan, 1.0, 1e9)


def test_long_values_are_abbreviated() -> None:
    assert abbreviated("a" * 100) == "'" + "a" * 59 + "..."
    assert abbreviated("a" * 58) == "'" + "a" * 58 + "'"


def test_each_field_that_differs_is_a_problem() -> None:
    assert list(field_problems(Record("a", 1, 2), Record("b", 1, 3), "token 0")) == [
        "token 0: name is 'a', replay gives 'b'",
        "token 0: added is 2, replay gives 3",
    ]
    assert list(field_problems(Record("a", 1, 2), Record("b", 1, 3), "token 0", ["count"])) == []


def test_a_field_that_an_older_file_lacks_is_no_problem() -> None:
    """A field with a default was added later. A field without one is compared whatever its value is."""
    name, _, added = fields(Record)
    assert is_unset(added, None)
    assert not is_unset(added, 0)
    assert not is_unset(name, None)
    assert list(field_problems(Record("a", 1), Record("a", 1, 3), "token 0")) == []
    assert list(field_problems(Record("a", 1, 3), Record("a", 1), "token 0")) == [
        "token 0: added is 3, replay gives None"
    ]
