"""Servers that evaluate without a model, and data for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from client.evaluation.fake_evaluator import FakeEvaluator, write_data


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
