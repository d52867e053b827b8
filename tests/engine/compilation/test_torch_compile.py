"""Compiled layers give what uncompiled ones give; without code generation, by the aot_eager backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gradellm_engine import Engine, GradEllm
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.base import ExplainSpec, SequenceChunk, Target
from support.kv_fixtures import evict, filled


def outcome(runner: ModelRunner, chunks: Sequence[SequenceChunk]) -> tuple[Tensor, list[Tensor]]:
    """Logits and scores of a captured step; its tokens are then removed from their slots."""
    runner.use_graphs(NoCapture())
    run = runner.explained_pass(chunks)
    scores = [row.clone() for row in run.heat_maps([Target(7), Target(9, 3), Target(11)])]
    runner.cuda_graphs = None
    evict(chunks)
    return run.logits.clone(), scores


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The engine's messages."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("gradellm")]


class NoCapture:
    """Captures nothing: every replay runs the function."""

    num_warm_ups = 0

    def begin(self) -> None:
        pass

    def warm_up(self, run: Callable[[], None]) -> None:
        run()

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        return run


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma2", "gpt2", "phi", "cohere"))]
)
def test_scores_are_the_same(
    model_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, family: str
) -> None:
    monkeypatch.setattr("gradellm_engine.model.transformers_model.compiles_layers", lambda device: True)  # as on a GPU
    torch._dynamo.reset()
    runner = Engine.load(str(model_path(family)), dtype="float64", kv_bytes=2**20).model.runner
    runner.allocate_pool(200)
    switches = replace(GradEllm(), layers=GradEllm().selected_layers(runner.num_layers))
    chunks = filled(runner, (1, 5, 30), ExplainSpec(switches))
    logits, rows = outcome(runner, chunks)
    runner.compile(backend="aot_eager")
    assert runner.compiled_layers is not None
    frames = torch._dynamo.utils.counters["frames"]["ok"]
    assert frames
    compiled_logits, compiled_rows = outcome(runner, chunks)
    assert not logged(caplog)
    assert torch.allclose(compiled_logits, logits, rtol=1e-9, atol=1e-12)
    for row, expected in zip(compiled_rows, rows, strict=True):
        assert torch.allclose(row, expected, rtol=1e-9, atol=1e-12)


def test_layers_that_cannot_be_compiled_run_uncompiled(
    model_path: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    runner = Engine.load(str(model_path("llama")), dtype="float64", kv_bytes=2**20).model.runner
    runner.allocate_pool(200)

    def broken(*args: object) -> None:
        raise RuntimeError("no compiler is installed\nhere")

    torch._dynamo.reset()
    runner.compile(backend=broken)
    assert runner.compiled_layers is None
    (message,) = logged(caplog)
    assert message.startswith("Layers cannot be compiled; running them uncompiled: ")
    assert "no compiler is installed" in message
    assert "\n" not in message
