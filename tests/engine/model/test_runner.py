"""How a runner routes batches: CUDA graphs first, then CPU traces, else eagerly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gradellm_engine import Engine, GradEllm
from gradellm_engine.compilation.executor import Batch
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.base import ExplainSpec, SequenceChunk, Target
from gradellm_engine.passes.batched import BatchedPass
from gradellm_engine.passes.ragged import RaggedPass
from support.kv_fixtures import evict, filled

EXPLAIN = ExplainSpec(GradEllm(layers=(0, 1, 2)))


class DecliningExecutor:
    """An executor that runs no batch."""

    def __init__(self, name: str, tried: list[str]) -> None:
        self.name, self.tried = name, tried
        self.batches: list[Batch] = []

    def execute(self, batch: Batch) -> None:
        self.tried.append(self.name)
        self.batches.append(batch)


@pytest.fixture
def runner(model_path: Callable[[str], Path]) -> ModelRunner:
    runner = Engine.load(str(model_path("llama")), use_graphs=False, kv_bytes=2**20).model.runner
    runner.allocate_pool(400)
    return runner


def decline(runner: Any) -> tuple[list[str], DecliningExecutor, DecliningExecutor]:
    """Stand in for CUDA graphs and CPU traces."""
    tried: list[str] = []
    runner.cuda_graphs, runner.cpu_traces = DecliningExecutor("graphs", tried), DecliningExecutor("traces", tried)
    return tried, runner.cuda_graphs, runner.cpu_traces


def test_decode_steps_and_replays_ask_graphs_and_then_traces(runner: ModelRunner) -> None:
    chunks = filled(runner, [5, 9])
    expected = runner.step(chunks)
    evict(chunks)
    tried, _, _ = decline(runner)
    assert torch.equal(runner.step(chunks), expected)
    assert tried == ["graphs", "traces"]
    again = SequenceChunk.replay(chunks[0].slot, 2, 6, EXPLAIN)
    (rows,) = runner.replay([again], [Target(7)] * 4)
    assert tried == ["graphs", "traces"] * 2
    assert rows.shape == (4, 6)
    assert rows.any()


def test_prefill_runs_eagerly(runner: ModelRunner) -> None:
    tried, _, _ = decline(runner)
    chunks = filled(runner, [5])  # prefilled
    slot = chunks[0].slot
    runner.prefill([SequenceChunk.new(slot, [3, 4, 5])])
    assert runner.logits([SequenceChunk.new(slot, [6, 7])]).shape == (2, 261)
    assert tried == []


def test_explained_chunks_of_several_tokens_are_no_decode_steps(runner: ModelRunner) -> None:
    tried, _, traces = decline(runner)
    slot = filled(runner, [5])[0].slot
    (rows,) = runner.explained_pass([SequenceChunk.new(slot, [3, 4], EXPLAIN)]).heat_maps([Target(7), Target(9)])
    assert tried == ["traces"]
    assert isinstance(traces.batches[0].run, RaggedPass)
    assert rows.shape == (2, 7)


@pytest.mark.parametrize(("lengths", "kind"), [([5], RaggedPass), ([5, 9], BatchedPass), ([5, 195], RaggedPass)])
@pytest.mark.parametrize("has_kernels", [False, True])
def test_short_sequences_attend_together_on_a_cpu(
    runner: ModelRunner, lengths: list[int], kind: type, *, has_kernels: bool
) -> None:
    """With kernels, sequences of any length do, and a single one."""
    _, _, traces = decline(runner)
    runner.cuda_graphs = runner.launch_graphs = None
    if has_kernels:
        pytest.importorskip("numba")
        kind = BatchedPass
    else:
        runner.fused_attention = None
    runner.step(filled(runner, lengths))
    assert isinstance(traces.batches[0].run, kind)


def test_a_pass_appends_ids_to_its_slots(runner: ModelRunner) -> None:
    (chunk,) = filled(runner, [5])
    before = list(chunk.slot.ids)
    runner.step([chunk])
    assert chunk.slot.ids == [*before, *chunk.ids]
