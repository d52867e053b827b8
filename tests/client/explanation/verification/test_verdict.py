"""Verdicts: when they hold, and how they are reported."""

from __future__ import annotations

import json
import math

from gradellm.explanation.verification import Mismatch, NotChecked, Verdict
from gradellm.explanation.verification.verdict import Findings, group_by_reason


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


def test_the_tolerance_is_inclusive() -> None:
    assert verdict(largest_difference=0.25, tolerance=0.25).holds
    assert not verdict(largest_difference=0.25, tolerance=0.24).holds


def test_a_verdict_is_json() -> None:
    """Not-finite differences, too, which JSON has no numbers for."""
    plain = verdict(
        largest_difference=math.nan,
        mismatches=(Mismatch("versions.torch", "1", "2"),),
        not_checked=(NotChecked("finished.stop", "y"),),
    ).to_plain()
    read = json.loads(json.dumps(plain, allow_nan=False))
    assert (read["holds"], read["holds_strictly"], read["largest_difference"]) == (False, False, "NaN")
    assert read["mismatches"] == [{"what": "versions.torch", "then": "1", "now": "2"}]
    assert read["not_checked"] == [{"what": "finished.stop", "why": "y"}]


def test_unchecked_fields_are_grouped_by_reason_and_parent() -> None:
    fields = [NotChecked("a.b", "x"), NotChecked("finished.stop", "y"), NotChecked("a.c", "x")]
    assert list(group_by_reason(fields)) == ["a: b, c (x)", "finished.stop (y)"]


def test_fields_of_several_parents_share_a_reason() -> None:
    findings = Findings()
    findings.skip("x", "a.b", "c", "d.e", "a.f")
    assert list(group_by_reason(findings.not_checked)) == ["a: b, f, c, d.e (x)"]
