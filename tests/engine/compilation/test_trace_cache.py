"""Which passes are traced, and when; models that cannot be traced run eagerly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradellm_engine import Engine, GradEllm
from gradellm_engine.compilation import trace_cache
from gradellm_engine.compilation.cpu_trace import TraceKey
from gradellm_engine.compilation.trace_cache import CpuTraceCache
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.base import ExplainSpec
from support.kv_fixtures import evict, filled

EXPLAIN = ExplainSpec(GradEllm(layers=(0, 1, 2)))


def test_a_pass_is_traced_when_its_key_recurs(runner: ModelRunner, traces: CpuTraceCache) -> None:
    before = len(traces)  # the load-time check's: one explained token
    assert before == 1
    chunks = filled(runner, [5, 9])
    for count in (before, before + 1, before + 1):
        runner.step(chunks)
        evict(chunks)
        assert len(traces) == count


def test_the_least_recently_used_trace_is_dropped(
    runner: ModelRunner, traces: CpuTraceCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_cache, "MAX_TRACES", 2)
    monkeypatch.setattr(traces, "uses_before", 1)
    for count in (1, 2, 3):
        runner.step(filled(runner, [4] * count))
    assert traces.keys == [TraceKey(2), TraceKey(3)]


def test_passes_of_many_tokens_are_not_traced(
    runner: ModelRunner, traces: CpuTraceCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_cache, "MAX_ROWS", 2)
    monkeypatch.setattr(traces, "uses_before", 1)
    runner.step(filled(runner, [4] * 3))
    assert TraceKey(3) not in traces.keys


def test_a_trace_that_gives_other_numbers_is_not_used(
    load: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    """A Python number is recorded as a constant."""
    runner = load("llama", use_graphs=False).model.runner
    count = iter(range(1, 100))
    runner.blocks[1].get_submodule("mlp").register_forward_hook(lambda module, args, output: output * next(count))
    with caplog.at_level("INFO", "gradellm_engine"):
        runner.use_graphs()
    assert runner.cpu_traces is not None
    assert not runner.cpu_traces.is_possible
    assert "run eagerly" in caplog.text
    assert runner.step(filled(runner, [5])).isfinite().all()


def test_a_model_whose_tracing_fails_runs_eagerly(
    load: Callable[..., Engine], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any) -> None:
        raise NotImplementedError("an unknown operation")

    monkeypatch.setattr(trace_cache, "record_trace", fails)
    runner = load("llama", use_graphs=False).model.runner
    with caplog.at_level("WARNING", "gradellm_engine"):
        runner.use_graphs()
    assert "an unknown operation" in caplog.text
    assert runner.cpu_traces is not None
    assert not runner.cpu_traces.is_possible
    assert runner.step(filled(runner, [5])).isfinite().all()


def test_a_model_whose_control_flow_depends_on_data_runs_eagerly(runner: ModelRunner, traces: CpuTraceCache) -> None:
    def depends(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output * float(output.abs().max())

    runner.blocks[1].get_submodule("mlp").register_forward_hook(depends)
    chunks = filled(runner, [5, 6])
    expected = runner.step(chunks)
    for _ in range(3):
        evict(chunks)
        assert torch.equal(runner.step(chunks), expected)
    assert not traces.is_possible
    assert not len(traces)


def test_models_with_offloaded_weights_run_eagerly(load: Callable[..., Engine]) -> None:
    runner = load("llama", use_graphs=False).model.runner
    runner.blocks[0]._hf_hook = object()  # type: ignore[assignment] # accelerate's
    runner.use_graphs()
    assert runner.cpu_traces is None
