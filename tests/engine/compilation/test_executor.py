"""A batch, and the executor that runs every batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradellm_engine import Engine, GradEllm
from gradellm_engine.compilation.executor import Batch, EagerExecutor
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.base import ExplainSpec, SequenceChunk, Target
from gradellm_engine.passes.lm_head import LogitHead
from gradellm_engine.passes.ragged import RaggedPass
from support.kv_fixtures import filled

EXPLAIN = ExplainSpec(GradEllm(layers=(0, 1, 2)))


@pytest.fixture(scope="module")
def runner(model_path: Callable[[str], Path]) -> ModelRunner:
    return Engine.load(str(model_path("llama")), use_graphs=False).model.runner


def ragged(runner: ModelRunner, batch: Batch) -> RaggedPass:
    graph_anchor = None if batch.head is None else torch.zeros((), requires_grad=True)
    return RaggedPass(batch.chunks, runner.rotary_of, graph_anchor=graph_anchor)


def batch_of(runner: ModelRunner, chunks: list[SequenceChunk], **kwargs: Any) -> Batch:
    return Batch(chunks, lambda batch: ragged(runner, batch), is_batched=False, **kwargs)


def test_a_batch_builds_its_pass_once(runner: ModelRunner) -> None:
    batch = batch_of(runner, filled(runner, [5]))
    assert batch.run is batch.run
    assert batch.build_pass() is not batch.run


def test_logits_alone_have_no_graph(runner: ModelRunner) -> None:
    are_recorded = []

    def model(run: Any) -> Tensor:
        are_recorded.append(torch.is_grad_enabled())
        return runner.forward_tokens(run.ids_and_positions, run, runner.model)[0]

    chunks = filled(runner, [5])
    result = EagerExecutor(model).execute(batch_of(runner, chunks))
    assert are_recorded == [False]
    assert torch.allclose(result.logits, runner.step(chunks), atol=1e-6)


def test_an_explained_batch_has_scores(runner: ModelRunner) -> None:
    chunks = filled(runner, [5], EXPLAIN)
    executor = EagerExecutor(lambda run: runner.forward_tokens(run.ids_and_positions, run, runner.model)[0])
    result = executor.execute(batch_of(runner, chunks, head=LogitHead(runner.lm_head)))
    (rows,) = result.heat_maps([Target(7)])
    (expected,) = runner.explained_pass(chunks).heat_maps([Target(7)])
    torch.testing.assert_close(rows, expected)
