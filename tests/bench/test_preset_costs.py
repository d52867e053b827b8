"""Costs of presets relative to the paper's: medians over rounds, each preset with the paper of its own round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gradellm_bench.preset_costs import costs, main, table
from gradellm_engine.params import PRESETS
from gradellm_engine.presets import RECOMMENDED

NAMES = [name for name in PRESETS if name != RECOMMENDED]


def test_a_slow_round_slows_all_presets_of_it() -> None:
    calls: list[str] = []

    def measure(name: str) -> float:
        turn = len(calls) // len(NAMES)
        calls.append(name)
        load = (99.0, 1.0, 7.0, 2.0)[turn]  # the first is not counted
        return load * (1.5 if name == "knockout" else 1.0)

    found = costs(measure, 3)
    assert found == {name: pytest.approx(1.5 if name == "knockout" else 1.0) for name in NAMES}
    assert sorted(calls) == sorted(NAMES * 4)


def test_a_table_has_a_column_for_each_delivery() -> None:
    assert table({"per_token": {"paper": 1.0}, "chunked": {"paper": 1.0}}).splitlines() == [
        "| preset | per_token | chunked |",
        "| --- | ---: | ---: |",
        "| paper | 1.000 | 1.000 |",
    ]


def test_a_model_is_measured(
    model_path: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- begin: preset costs -->\n<!-- end: preset costs -->\n")
    arguments = ["--model", str(model_path("llama")), "--rounds", "1", "--new-tokens", "3", "--prompt-tokens", "20"]
    assert main([*arguments, "--page", str(page)]) == 0
    printed = capsys.readouterr().out
    assert [line.split(" | ")[0] for line in printed.splitlines()[2:]] == [f"| {name}" for name in NAMES]
    assert printed.strip() in page.read_text()
