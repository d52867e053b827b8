"""Verdicts, and comparisons of numbers and fields. tests/server/rpc/clients/test_verify.py replays on a server."""

from __future__ import annotations

import math

import pytest

from gradellm.explanation.verification import Mismatch, NotChecked, Verdict
from gradellm.explanation.verification.fields import abbreviated, distance, is_close
from gradellm.explanation.verification.verdict import group_by_reason


def verdict(**changes: object) -> Verdict:
    return Verdict(**{"rows": 1, "largest_difference": 0.0, "worst_token": 0, "largest_logprob_difference": 0.0,
                      "mismatches": (), **changes})  # type: ignore[arg-type]  # fmt: skip


def test_when_a_verdict_holds() -> None:
    assert verdict().holds_strictly
    assert verdict(mismatches=(Mismatch("versions.torch", "1", "2"),)).holds
    assert not verdict(mismatches=(Mismatch("versions.torch", "1", "2"),)).holds_strictly
    for changes in (
        {"rows": 0}, {"problems": ("a",)}, {"other_model": "b"}, {"largest_difference": 0.1},
        {"largest_difference": math.nan},
    ):  # fmt: skip
        assert not verdict(**changes).holds, changes


def test_unchecked_fields_are_grouped_by_reason_and_parent() -> None:
    fields = [NotChecked("a.b", "x"), NotChecked("finished.stop", "y"), NotChecked("a.c", "x")]
    assert list(group_by_reason(fields)) == ["a: b, c (x)", "finished.stop (y)"]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(1.0, 1.5, 0.5), (math.inf, math.inf, 0.0), (math.nan, math.nan, 0.0), (math.nan, 1.0, math.inf)],
)
def test_distances(first: float, second: float, expected: float) -> None:
    assert distance(first, second) == expected


def test_closeness_is_relative_to_large_values_only() -> None:
    assert is_close(0.0, 0.001, 1e-3)
    assert not is_close(0.0, 0.002, 1e-3)
    assert is_close(-20.0, -20.01, 1e-3)


def test_long_values_are_abbreviated() -> None:
    assert abbreviated("a" * 100) == "'" + "a" * 59 + "..."
