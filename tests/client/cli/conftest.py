"""Servers that evaluate without a model, and data for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client.evaluation.fake_evaluator import NOWHERE, FakeEvaluator, write_data
from gradellm.cli import main


@pytest.fixture
def server() -> Iterator[FakeEvaluator]:
    running = FakeEvaluator()
    yield running
    running.stop()


@pytest.fixture
def slow() -> Iterator[FakeEvaluator]:
    running = FakeEvaluator(seconds=0.1)
    yield running
    running.stop()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data.jsonl", 8)


@pytest.fixture
def refusal(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Runs `gradellm evaluate` with invalid flags and returns its error; D stands for a data set, O for a folder.

    No server is started, and no results file is made.
    """

    def run(arguments: str) -> str:
        places = {"D": str(data), "O": str(tmp_path / "out")}
        argv = [places.get(word, word) for word in arguments.split()]
        target = [] if "--target" in argv or {"--tables", "--merge"} & {*argv} else NOWHERE
        assert main(["evaluate", *argv, *target]) == 2
        error = capsys.readouterr().err
        assert "starting" not in error
        assert not (tmp_path / "out" / "results.jsonl").exists()
        return error

    return run
