"""What is measured of one row, on a tiny random model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gradellm_bench.study.candidates import CANDIDATES, chosen
from gradellm_bench.study.examples import StudyExample
from gradellm_bench.study.measure import SoftGrid, measure_row
from gradellm_engine import Engine, PromptInput

TEXT = "Ben has a cat. Anna has a dog. Which animal does Ben have?"
ROW = StudyExample(
    "a", PromptInput(prompt=TEXT), target=" cat", evidence=((10, 13),), sentences=((0, 14), (15, 30))
)  # fmt: skip


@pytest.fixture(scope="module")
def engine(model_path: Callable[[str], Path]) -> Engine:
    return Engine.load(str(model_path("llama")), dtype="float32")


def test_every_candidate_is_measured(engine: Engine) -> None:
    row = measure_row(engine, ROW, CANDIDATES, None)
    assert row is not None
    assert set(row["methods"]) == {*CANDIDATES, "random"}
    for name, values in row["methods"].items():
        assert 0 < values["auprc"] <= 1, name
        assert 0 <= values["mass"] <= 1, name
        assert 0 <= values["drawn_mass"] <= 1, name
        assert 0 <= values["entropy"] <= 1 + 1e-9, name
        assert values["source_first"] in (0.0, 1.0), name


def test_soft_metrics_of_the_step_that_is_explained(engine: Engine) -> None:
    methods = chosen(["paper", "knockout_no_sink"])
    row = measure_row(engine, ROW, methods, SoftGrid((0.3, 0.7), 2))
    assert row is not None
    for values in row["methods"].values():
        assert 0 <= values["pi_soft_ns"] <= 1
        assert values["pi_soft_nc"] >= 0


def test_rows_that_do_not_count(engine: Engine) -> None:
    """A random model does not name the animal."""
    asked = replace(ROW, target="", answer="cat", candidates=frozenset({"cat", "dog"}))
    assert measure_row(engine, asked, {}, None) is None
    short = replace(ROW, prompt=PromptInput(prompt="a"), evidence=(), sentences=())
    assert measure_row(engine, short, {}, None) is None
