"""A tiny model for all tests of the bench, and a clock that they set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
import torch

from gradellm_bench import models
from gradellm_bench.backends import BACKENDS
from gradellm_bench.models import BenchModel, random_bench_model

TINY = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
OWN_BACKENDS = [name for name, backend in BACKENDS.items() if backend.needs is None]


class FakeTime:
    """Replaces a module's `time`: pairs of readings are apart by the given durations, then by `step`."""

    def __init__(self, durations: Iterable[float] = (), step: float = 1.0) -> None:
        self._durations: Iterator[float] = iter(durations)
        self._step = step
        self._is_running = False
        self.now = 0.0

    def perf_counter(self) -> float:
        """Seconds: every second reading ends a duration."""
        if self._is_running:
            self.now += next(self._durations, self._step)
        self._is_running = not self._is_running
        return self.now


@pytest.fixture(scope="session")
def tiny() -> BenchModel:
    """A random Llama of two layers, in float32 on a CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.SHAPES, "tiny", TINY)
        return random_bench_model("tiny", dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture
def shape(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of that model's shape, for commands that take a shape."""
    monkeypatch.setitem(models.SHAPES, "tiny", TINY)
    return "tiny"
