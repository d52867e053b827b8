"""Tables of capacity planning: units, percentiles, errors, alignment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradellm_bench.capacity.limits import Limit
from gradellm_bench.capacity.planning import Plan
from gradellm_bench.capacity.report import limit_table, markdown, plan_table, plot, validation_table
from gradellm_bench.capacity.request_metrics import Summary

RUN = Summary(100, 0.0, (0.1, 0.25, 0.3), (0.01, 0.025, 0.03), (0.2, 0.5, 0.9), 1000.0, 500.0, 0.5, 10.4)


def rows_of(table: str) -> list[list[str]]:
    """The cells of a Markdown table below its rule."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_a_plans_latencies_are_medians_and_95th_percentiles() -> None:
    plan = Plan(5000.0, 4.09, "first token after 3 s", 1500, 3000, RUN, 6_570_000.0)
    table = plan_table([plan, replace(plan, a_month=None)], "EUR")
    assert table.splitlines()[0].endswith("| cost per month, thousands EUR |")
    cells = ["5,000", "15,600", "1,500", "3,000", "4.09", "0.10 / 0.25", "10 / 25", "0.20 / 0.50", "50%"]
    assert rows_of(table) == [[*cells, "6,570"], [*cells, ""]]


def test_exhausted_resources_are_bold() -> None:
    limits = [Limit("a", 1.13, "9 of 8", "b"), Limit("c", 1.0, "8 of 8", "d")]
    assert rows_of(limit_table(limits)) == [["a", "**113%**", "9 of 8", "b"], ["c", "100%", "8 of 8", "d"]]


def test_errors_are_relative_to_what_was_measured() -> None:
    real: dict[str, Any] = {
        "tokens_per_second": 80.0,
        "first_token": [2.0, 4.0],
        "gap": [0.01, 0.02],
        "lag": [0.0, 0.0],
        "running": 4.0,
    }
    simulated = {**real, "tokens_per_second": 100.0, "first_token": [1.0, 4.0]}
    rows = rows_of(validation_table([{"what": "a run", "real": real, "simulated": simulated}]))
    assert rows[0] == ["a run", "tokens/s", "80", "100", "+25%"]
    assert rows[1] == ["", "time to first token, s, p50", "2", "1", "-50%"]
    assert rows[3] == ["", "between tokens, ms, p50", "10", "10", "+0%"]
    assert rows[5][-1] == ""  # nothing was explained


@pytest.mark.parametrize(
    ("column", "rule"),
    [(["1", "2,000"], "---:"), (["**3%**", ""], "---:"), (["+4%", "-5%"], "---:"), (["6", "seven"], "---")],
)
def test_columns_of_numbers_are_right_aligned(column: list[str], rule: str) -> None:
    table = markdown(["1", "figure"], [["1", cell] for cell in column])
    assert table.splitlines()[1] == f"| --- | {rule} |"


def test_curves_are_plotted(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot({"H100, none explained": [(1.0, 0.1, 8.0), (2.0, 0.2, 9.0)]}, 2.0, tmp_path / "a.svg")
    assert "<!-- H100, none explained" in (tmp_path / "a.svg").read_text()
