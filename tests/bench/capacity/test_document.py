"""docs/capacity.md is what the program writes from the recorded measurements."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from typing import Any

import pytest

from bench.capacity.conftest import DOCS
from gradellm_bench.capacity import document
from gradellm_bench.capacity.planning import ServiceLevel, plan
from gradellm_bench.capacity.report import validation_table


def assert_close(found: Any, expected: Any) -> None:
    """The same document; numbers as near as other processors' rounding lets them be."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_close(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for actual, value in zip(found, expected, strict=True):
            assert_close(actual, value)
    else:
        assert found == (pytest.approx(expected, rel=1e-9) if isinstance(expected, float) else expected)


def test_the_committed_page_is_current() -> None:
    """Recomputes its quick parts, trials and one plan; the rest is compared with the JSON file."""
    page = (DOCS / "capacity.md").read_text()
    written = json.loads((DOCS / "capacity.json").read_text())
    assert document.put(page, "trials", validation_table(document.validation_runs(DOCS))) == page
    assert written["traffic"] == asdict(document.TRAFFIC)
    costs = document.machines_of(DOCS)["H100"]
    before = written["plans"]["H100"][0]
    now = plan(
        costs,
        document.SERVERS["H100"],
        replace(document.TRAFFIC, rate=document.LOADS[0]),
        ServiceLevel(),
        gpu_hour=document.PRICE,
        known=(before["each"], before["breaks"]),
    )
    assert_close(json.loads(json.dumps(asdict(now))), before)
    for marks in re.findall(r"<!-- begin: (.+?) -->", page):
        assert page.count(f"<!-- begin: {marks} -->") == page.count(f"<!-- end: {marks} -->") == 1


def test_a_section_is_replaced_between_its_markers() -> None:
    page = "a\n<!-- begin: x -->\nold\n<!-- end: x -->\nb\n"
    assert document.put(page, "x", "new") == page.replace("old", "new")
    for wrong, name in ((page, "y"), (page.replace("<!-- end: x -->", ""), "x")):
        with pytest.raises(ValueError, match=f"lacks the markers of '{name}'"):
            document.put(wrong, name, "new")
