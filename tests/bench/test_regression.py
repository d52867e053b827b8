"""The comparison of two source trees: each process imports its own tree, and ratios are taken round by round."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gradellm_bench.regression import MeasuredTree, compare, main

PROJECT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_tree_is_compared_with_itself(
    model_path: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result_file = tmp_path / "result.json"
    arguments = [str(PROJECT), str(PROJECT), "--model", str(model_path("llama")), "--rounds", "1"]
    arguments += ["--new-tokens", "4", "--streams", "2", "--threads", "1", "--json", str(result_file)]
    assert main(arguments) == 0
    result = json.loads(result_file.read_text())
    modes = ("plain", "per_token", "chunked")
    assert set(result["ratios"]) == {f"{mode}, {how}" for mode in modes for how in ("alone", "2 at once")}
    assert all(ratio["median"] > 0 for ratio in result["ratios"].values())
    assert "| plain, alone |" in capsys.readouterr().out


def test_ratios_are_medians_of_rounds() -> None:
    rounds = [({"plain": 1.0}, {"plain": 2.0}), ({"plain": 3.0}, {"plain": 3.0}), ({"plain": 1.0}, {"plain": 1.5})]
    figures = compare(rounds)["plain"]
    assert (figures["median"], figures["min"], figures["max"]) == (1.5, 1.0, 2.0)


def test_a_tree_that_cannot_run_is_reported(tmp_path: Path) -> None:
    (tmp_path / "gradellm_engine.py").write_text("raise RuntimeError('of this tree')")
    with pytest.raises(RuntimeError, match="of this tree"):
        MeasuredTree(tmp_path, {})
