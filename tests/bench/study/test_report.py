"""Means, intervals and ranks of the study's rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gradellm_bench.study.report import (
    OVERVIEW,
    intervals,
    load,
    mean_ranks,
    overview_table,
    paired_table,
    rank_table,
    soft_table,
    stratified_interval,
    table,
)
from gradellm_bench.study.results import ResultsFile


def write(path: Path, rows: list[dict[str, dict[str, float]]]) -> None:
    file = ResultsFile(path, {"model": "m", "dataset": "d", "methods": ["a", "b"]})
    file.ids()
    for i, row in enumerate(rows):
        file.add({"id": str(i), "number": i, "methods": {**row, "random": {"auprc": 0.1}}})
    file.add({"id": "wrong", "number": len(rows)})  # a row that does not count


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"a": {"auprc": 0.9}, "b": {"auprc": 0.5 + 0.1 * (i % 2)}} for i in range(8)]
    write(tmp_path / "m-d.jsonl", rows)
    return tmp_path


def test_even_and_odd_rows(folder: Path) -> None:
    key = ("m", "d", "auprc")
    assert len(load(folder)[key]["b"]) == 8
    assert load(folder, 0)[key]["b"] == [0.5] * 4
    assert load(folder, 1)[key]["b"] == [0.6] * 4


def test_methods_are_compared_on_the_rows_that_all_have() -> None:
    found = intervals({"a": [1.0, np.nan, 0.0], "b": [0.5, 1.0, 0.5]})
    assert (found["a"].mean, found["b"].mean) == (0.5, 0.5)
    assert found["a"].n == 2


def test_data_sets_have_equal_weights_in_mean_ranks() -> None:
    data = {
        ("m", "d", "auprc"): {"a": [0.9], "b": [0.5], "c": [0.5], "random": [0.9]},
        ("m", "d", "entropy"): {"a": [0.0], "b": [1.0], "c": [1.0], "random": [1.0]},  # is not ranked
        ("m", "e", "auprc"): {"a": [0.1], "b": [0.2], "c": [0.3], "random": [0.0]},
        ("m", "e", "source_first"): {"a": [0.1], "b": [0.2], "c": [0.3], "random": [0.0]},
        ("n", "d", "auprc"): {"a": [0.0], "b": [1.0], "random": [0.0]},  # without c
    }
    assert mean_ranks(data) == {"a": 2.0, "b": 2.25, "c": 1.75}
    assert rank_table(data).splitlines()[2:] == ["| c | 1.75 |", "| a | 2.00 |", "| b | 2.25 |"]


def test_a_table_has_intervals(folder: Path) -> None:
    lines = table(load(folder), "auprc").splitlines()
    assert lines[0] == "| method | m, d (8) |"
    assert lines[2] == "| a | 0.900 ± 0.000 |"
    assert lines[3].startswith("| b | 0.550 ± 0.0")
    assert table(load(folder), "mass") == ""


def test_paired_differences(folder: Path) -> None:
    """b is below a by 0.4 or 0.3; a itself is not."""
    lines = paired_table(load(folder), "auprc", "a").splitlines()
    assert lines[0] == "| method | m, d (8) |"
    assert lines[2] == "| a | 0.900 (+0.000 ± 0.000) |"
    assert lines[3].startswith("| b | 0.550 (**-0.350 ± 0.0")
    assert paired_table(load(folder), "auprc", "c") == ""
    assert paired_table(load(folder), "auprc", "a", ["b"]).splitlines()[2:] == lines[3:4]
    assert table(load(folder), "auprc", ["b"]).count("\n") == 2
    assert paired_table({("m", "d", "auprc"): {"a": [1.0, np.nan], "b": [0.5, 1.0]}}, "auprc", "b").endswith(
        "| a | 1.000 (+0.500) |\n| b | 0.750 (+0.000 ± 0.000) |"
    )
    assert "| a |  |" in paired_table({("m", "d", "auprc"): {"a": [np.nan], "b": [0.5]}}, "auprc", "b")


def test_the_mean_of_both_soft_metrics_over_data_sets() -> None:
    """Data sets have equal weights, whatever their number of rows."""
    data = {
        ("m", "d", "pi_soft_ns"): {"a": [0.1, 0.3], "b": [0.0, 0.0]},
        ("m", "d", "pi_soft_nc"): {"a": [0.5, 0.7], "b": [0.2, 0.2]},
        ("m", "e", "pi_soft_ns"): {"a": [0.0], "b": [0.4]},
        ("m", "e", "pi_soft_nc"): {"a": [0.0], "b": [0.6]},
        ("n", "d", "pi_soft_ns"): {"a": [0.1], "c": [0.1]},
        ("n", "d", "pi_soft_nc"): {"a": [0.3], "c": [0.1]},
    }
    lines = soft_table(data, "a").splitlines()
    assert lines[0] == "| method | m (d 2, e 1) | n (d 1) |"
    assert lines[2] == "| a | 0.200 (+0.000 ± 0.000) | 0.200 (+0.000 ± 0.000) |"
    assert lines[3].startswith("| b | 0.300 (**+0.100 ± ")  # (0.1 - 0.4 and 0.5 - 0.0) / 2
    assert lines[3].endswith("|  |")
    assert lines[4] == "| c |  | 0.100 (**-0.100 ± 0.000**) |"
    assert soft_table({}, "a") == ""


def test_strata_are_resampled_by_themselves() -> None:
    low, high = stratified_interval([np.full(5, 1.0), np.full(50, 3.0)])
    assert (low, high) == (2.0, 2.0)
    draws = np.random.default_rng(0).normal(size=400)
    low, high = stratified_interval([draws, draws])
    assert high - low == pytest.approx(2 * 1.96 * draws.std() / np.sqrt(800), rel=0.1)


def test_the_overview_has_equal_weights_for_models() -> None:
    data = {
        ("m", "sst2", "pi_soft_ns"): {"a": [0.2]},
        ("m", "sst2", "pi_soft_nc"): {"a": [0.4]},
        ("n", "sst2", "pi_soft_ns"): {"a": [0.9, np.nan]},
        ("m", "lambada", "auprc"): {"a": [0.5], "b": [0.7]},
        ("m", "retrieval2", "auprc"): {"a": [1.0]},
        ("m", "retrieval2", "source_first"): {"a": [0.0, 1.0]},
        ("m", "retrieval4", "source_first"): {"a": [1.0]},
    }
    lines = overview_table(data, {"a": "a step", "b": "two passes"}).splitlines()
    assert lines[0].split(" | ")[2:] == [*list(OVERVIEW)[:3], f"{list(OVERVIEW)[3]} |"]
    assert lines[2:] == ["| a | a step | 0.60 | 0.50 | 0.75 |  |", "| b | two passes |  | 0.70 |  |  |"]
