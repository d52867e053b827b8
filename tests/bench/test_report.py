"""Tables, sentences and JSON of a report: medians, ratios and shares."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradellm_bench.latency import Latency
from gradellm_bench.report import (
    Report,
    admission_fact,
    headline,
    latency_table,
    memory_fact,
    plot,
    reuse_fact,
    throughput_table,
)
from gradellm_bench.served.throughput import Admission, Memory, Reuse, Throughput

PLAIN = Latency("plain", 1200, 8, [90.0, 110.0, 100.0], [10.0, 12.0, 40.0], floor=6.0)
EXPLAINED = Latency("per_token", 1200, 8, [95.0, 130.0, 120.0], [21.0, 18.0, 80.0], [5.0, 7.0, 6.0])


def rows_of(table: str) -> list[list[str]]:
    """The cells of a Markdown table below its rule."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_latencies_are_medians_and_ratios_to_plain() -> None:
    table = latency_table([PLAIN, EXPLAINED])
    assert table.startswith("prompt of 1,200 tokens\n\n| backend ")
    assert rows_of(table) == [
        ["plain", "100", "12.0", "1.00", "", "6.0 (50%)"],
        ["per_token", "120", "21.0", "2.00", "6", ""],  # ratios 2.1, 1.5 and 2
    ]
    assert rows_of(latency_table([EXPLAINED]))[0][3] == ""


def test_the_columns_of_a_table_are_aligned() -> None:
    lines = latency_table([PLAIN, EXPLAINED]).splitlines()[2:]
    assert len({len(line) for line in lines}) == 1
    assert lines[2].startswith("| plain     |")


def test_throughputs_have_a_row_for_each_number_of_streams() -> None:
    results = [
        Throughput("plain", 128, 1, 50.0, 20.0, 100.0),
        Throughput("generate", 128, 1, 25.0, 40.0, 100.0),
        Throughput("plain", 128, 16, 1400.0, 11.4, 1600.0),
        Throughput("generate", 128, 16, 400.0, 40.0, 1600.0),
    ]
    table = throughput_table(results)
    assert "prompts of 128 tokens" in table
    assert rows_of(table) == [
        ["1", "50.0 (20; 50%)", "25.0 (40; 25%)"],
        ["16", "1,400.0 (11; 88%)", "400.0 (40; 25%)"],
    ]


def test_sentences_have_the_figures_and_their_ratios() -> None:
    admitted = admission_fact(Admission(4, 1500, median_gap=20.0, largest_gap=50.0, first_token=1234.0))
    assert "50 ms, 2.5 times the median" in admitted
    assert "1,234 ms" in admitted
    assert "50 ms to its first token, 0.25 of" in reuse_fact(Reuse(1000, 1094, 1063, first=200.0, second=50.0))
    used = Memory({"plain": 2 * 10**9, "per_token": 3 * 10**9}, 0, 1000, 1_500_000, 1_600_000)
    assert "plain 2,000 MB (1.000), per_token 3,000 MB (1.500)" in memory_fact(used)
    assert "1.5 MB in use before, 1.6 MB after" in memory_fact(used)
    assert memory_fact(Memory({}, 0, 10, 0, 0)).startswith("10 short explained requests")


def test_the_headline_leaves_out_what_is_empty() -> None:
    report = Report({"model": "random 125m", "threads": "", "device": "a GPU"}, 4.07e12)
    assert headline(report) == "random 125m, a GPU; memory bandwidth 4070.0 GB/s"


def test_json_has_every_round(tmp_path: Path) -> None:
    report = Report({"model": "a"}, 1e9, [PLAIN, EXPLAINED], [Throughput("plain", 128, 1, 50.0, 20.0, 100.0)])
    report.write_json(tmp_path / "a.json")
    written = json.loads((tmp_path / "a.json").read_text())
    assert [Latency(**row) for row in written["latencies"]] == report.latencies
    assert [Throughput(**row) for row in written["throughputs"]] == report.throughputs
    assert written["admission"] is written["memory"] is None


def test_a_plot_has_a_panel_for_each_measured_part(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot(Report({"model": "a"}, 1e9, [PLAIN, EXPLAINED]), tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    assert "<!-- Time per token" in drawn
    assert "<!-- Throughput" not in drawn
