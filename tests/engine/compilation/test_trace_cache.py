"""CPU traces give what eager execution gives, to the last bit; models that cannot be traced run eagerly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradellm_engine import (
    AttributionSettings,
    Delivery,
    Engine,
    GradEllm,
    Sampling,
    Sources,
)
from gradellm_engine.compilation import trace_cache
from gradellm_engine.compilation.cpu_trace import TraceKey
from gradellm_engine.compilation.trace_cache import CpuTraceCache
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.base import ExplainSpec, SequenceChunk, Target
from support.kv_fixtures import evict, filled
from support.scheduler_harness import RequestOutput, finish, scheduler_of
from support.tiny_models import FAMILIES

# Mixtures of experts route tokens by their values.
DATA_DEPENDENT = {"deepseek_v3", "gpt_oss", "mixtral", "qwen3_moe"}
EXPLAIN = ExplainSpec(GradEllm(layers=(0, 1, 2)))
SETTINGS = {
    "plain": None,
    "per_token": AttributionSettings(sources=Sources.PREFIX),
    "upper layers": AttributionSettings(GradEllm(layers=1), sources=Sources.PREFIX),
    "chunked": AttributionSettings(sources=Sources.PREFIX, delivery=Delivery.CHUNKED, chunk_size=3),
    "another target": AttributionSettings(target_token_id=70, sources=Sources.PREFIX),
}


@pytest.fixture(scope="module")
def load(model_path: Callable[[str], Path]) -> Callable[..., Engine]:
    def load(family: str, **kwargs: Any) -> Engine:
        return Engine.load(str(model_path(family)), **kwargs)

    return load


@pytest.fixture
def runner(load: Callable[..., Engine]) -> ModelRunner:
    return load("llama").model.runner


@pytest.fixture
def traces(runner: ModelRunner) -> CpuTraceCache:
    assert runner.cpu_traces is not None
    return runner.cpu_traces


def events_of(engine: Engine, num_streams: int = 3) -> dict[str, list[RequestOutput]]:
    """The events of requests of every kind, several at a time, so that passes have different numbers of tokens."""
    events = {}
    for name, settings in SETTINGS.items():
        scheduler = scheduler_of(engine, max_running=num_streams, num_tokens=300)
        requests = []
        for i in range(num_streams):
            sampling = Sampling(max_new_tokens=14 - 3 * i, temperature=0.9 * (i % 2), seed=i)
            requests.append(engine.generation_request("a small fox "[i:], sampling, settings))
            scheduler.submit(requests[-1])
        events[name] = finish(scheduler, requests)
    return events


def assert_same(actual: Engine, reference: Engine) -> None:
    """Two engines give the same events, to the last bit."""
    expected = events_of(reference)
    for name, outputs in events_of(actual).items():
        for output, expected_output in zip(outputs, expected[name], strict=True):
            assert output.error is expected_output.error is None
            assert output.ids == expected_output.ids
            assert [step.logprob for step in output.steps] == [step.logprob for step in expected_output.steps]
            assert output.attributions.keys() == expected_output.attributions.keys()
            assert all(map(torch.equal, output.rows, expected_output.rows))


@pytest.mark.parametrize("family", FAMILIES)
def test_events_equal_those_of_eager_execution_to_the_last_bit(load: Callable[..., Engine], family: str) -> None:
    by_trace, by_eager = load(family), load(family, use_graphs=False)
    traces = by_trace.model.runner.cpu_traces
    assert traces is not None
    assert traces.is_possible == (family not in DATA_DEPENDENT)
    assert by_eager.model.runner.cpu_traces is None
    assert_same(by_trace, by_eager)
    assert (len(traces) > 10) == traces.is_possible


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_dtypes(load: Callable[..., Engine], dtype: str) -> None:
    by_trace, by_eager = load("llama", dtype=dtype), load("llama", dtype=dtype, use_graphs=False)
    assert_same(by_trace, by_eager)
    traces = by_trace.model.runner.cpu_traces
    assert traces is not None
    assert len(traces) > 10


def test_a_trace_calls_no_module_of_the_layers(runner: ModelRunner, traces: CpuTraceCache) -> None:
    called: list[nn.Module] = []
    chunks = filled(runner, [5], EXPLAIN)
    runner.explained_pass(chunks).heat_maps([Target(7)])
    evict(chunks)
    for block in runner.blocks:
        block.register_forward_hook(lambda module, args, output: called.append(module))
    runner.explained_pass(chunks).heat_maps([Target(7)])
    assert not called
    runner.cpu_traces = None
    evict(chunks)
    runner.explained_pass(chunks).heat_maps([Target(7)])
    assert called == runner.blocks


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


def test_an_error_in_a_trace_fails_that_pass_alone(
    runner: ModelRunner, traces: CpuTraceCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = filled(runner, [5], EXPLAIN)
    expected = runner.explained_pass(chunks).heat_maps([Target(7)])
    evict(chunks)
    store = type(chunks[0].slot).store

    def fails(*args: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(type(chunks[0].slot), "store", fails)
    with pytest.raises(RuntimeError, match="no memory"):
        runner.explained_pass(chunks)
    monkeypatch.setattr(type(chunks[0].slot), "store", store)
    again = runner.explained_pass(chunks).heat_maps([Target(7)])
    assert all(map(torch.equal, again, expected))


@pytest.fixture
def fresh_parts(runner: ModelRunner) -> Iterator[list[SequenceChunk]]:
    chunks = filled(runner, [5, 8, 3], EXPLAIN)
    yield chunks
    for chunk in chunks:
        chunk.slot.close()


def test_traces_outlive_the_pool(runner: ModelRunner, traces: CpuTraceCache, fresh_parts: list[SequenceChunk]) -> None:
    """Traces hold none of the pool's memory."""
    targets = [Target(7)] * 3
    for _ in range(3):
        evict(fresh_parts)
        expected = runner.explained_pass(fresh_parts).heat_maps(targets)
    count = len(traces)
    runner.allocate_pool(200)
    again = runner.explained_pass(filled(runner, [5, 8, 3], EXPLAIN)).heat_maps(targets)
    assert all(map(torch.equal, again, expected))
    assert len(traces) == count
