"""Tables and the plot of servers under load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradellm_bench.network.report import burst_table, load_table, plot_loads


def test_ratios_are_to_vllm_s_figures() -> None:
    figures = {"prompt": 128, "streams": 8, "token_ms": 60.0, "max_gap_ms": 90.0}
    rows: list[dict[str, Any]] = [
        figures | {"server": "vllm", "tokens_per_second": 100.0, "last_first_token_ms": 1000.0},
        figures | {"server": "plain", "tokens_per_second": 97.0, "last_first_token_ms": 1050.0},
    ]
    lines = burst_table(rows).splitlines()
    assert lines[2] == "| 128 | 8 | vllm | 100.0 | 1.00 | 1000 | 1.00 | 60.0 | 90 |"
    assert lines[3] == "| 128 | 8 | plain | 97.0 | 0.97 | 1050 | 1.05 | 60.0 | 90 |"
    assert "| plain | 97.0 |  | 1050 |  |" in burst_table(rows[1:])
    assert burst_table([]) == ""


def test_loads_have_a_row_each_and_a_plot(tmp_path: Path) -> None:
    percentiles = {"p50": 1000.0, "p95": 2000.0, "p99": 3000.4, "max": 3000.4}
    row = {
        "prompt": 128,
        "server": "plain",
        "load": 80,
        "rate": 1.5,
        "tokens_per_second": 70.0,
        "first_token": percentiles,
        "gap": percentiles,
        "num_served": 47,
        "num_refused": 1,
    }
    assert load_table([row]).splitlines()[2] == (
        "| 128 | 80 % | plain | 1.50 | 70.0 | 1,000 | 2,000 | 3,000 | 1,000 | 2,000 | 3,000 | 3,000 | 47 / 1 |"
    )
    assert load_table([]) == ""
    plot_loads([row, row | {"load": 100}], tmp_path / "loads.png")
    assert (tmp_path / "loads.png").read_bytes().startswith(b"\x89PNG")
