"""CPU traces give what eager execution gives, to the last bit, without a call of the layers' modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from gradellm_engine import AttributionSettings, Delivery, Engine, GradEllm, Sampling, Sources
from gradellm_engine.compilation.cpu_trace import CpuTrace, TraceContext
from gradellm_engine.compilation.trace_cache import TRACE_AFTER_USES, CpuTraceCache
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.base import ExplainSpec, SequenceChunk, Target
from gradellm_engine.passes.batched import BatchedPass
from gradellm_engine.passes.lm_head import LogitHead
from support.kv_fixtures import evict, filled
from support.scheduler_harness import RequestOutput, finish, scheduler_of
from support.tiny_models import FAMILIES

EXPLAIN = ExplainSpec(GradEllm(layers=(0, 1, 2)))
# Mixtures of experts route tokens by their values.
DATA_DEPENDENT = {"deepseek_v3", "gpt_oss", "mixtral", "qwen3_moe"}
SETTINGS = {
    "plain": None,
    "per_token": AttributionSettings(sources=Sources.PREFIX),
    "upper layers": AttributionSettings(GradEllm(layers=1), sources=Sources.PREFIX),
    "chunked": AttributionSettings(sources=Sources.PREFIX, delivery=Delivery.CHUNKED, chunk_size=3),
    "another target": AttributionSettings(target_token_id=70, sources=Sources.PREFIX),
}


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
    for _ in range(TRACE_AFTER_USES):
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


def test_an_error_in_a_trace_fails_that_pass_alone(
    runner: ModelRunner, traces: CpuTraceCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = filled(runner, [5], EXPLAIN)
    expected = runner.explained_pass(chunks).heat_maps([Target(7)])
    evict(chunks)
    store = BatchedPass.store

    def fails(*args: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(BatchedPass, "store", fails)
    with pytest.raises(RuntimeError, match="no memory"):
        runner.explained_pass(chunks)
    monkeypatch.setattr(BatchedPass, "store", store)
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


class OutputCache:
    """Takes the outputs of linear layers."""

    def __init__(self) -> None:
        self.outputs: dict[nn.Module, Tensor] = {}

    def put_all(self, outputs: dict[nn.Module, Tensor]) -> None:
        self.outputs |= outputs


@pytest.mark.parametrize("is_recorded", [True, False])
def test_functions_of_a_trace_are_called_in_turn(is_recorded: bool) -> None:
    """Hidden states, cached outputs and saved tensors of the forward pass each go where they are needed."""
    head, layer = nn.Linear(3, 7, bias=False), nn.Linear(2, 2)
    hidden, output, saved = torch.randn(1, 2, 3), torch.randn(1, 2, 2), torch.randn(4)
    calls: list[tuple[Any, ...]] = []

    def forward(context: TraceContext, row: Tensor) -> tuple[Tensor, ...]:
        assert not torch.is_grad_enabled()
        calls.append((context, row))
        return (hidden, output, saved) if is_recorded else (hidden, saved)

    def backward(context: TraceContext, gradient: Tensor, *tensors: Tensor) -> tuple[()]:
        assert not torch.is_grad_enabled()
        calls.append((context, gradient, *tensors))
        return ()

    trace = CpuTrace(forward, [layer] if is_recorded else [], lambda logits: (2 * logits[0],), backward)
    run, cache = SimpleNamespace(ids_and_positions=torch.tensor([[5, 6], [0, 1]])), OutputCache()
    context = TraceContext(cast("Any", run), cast("Any", cache) if is_recorded else None)
    with torch.no_grad():
        assert torch.equal(trace.logits(context, head), 2 * head(hidden)[0])
    logit_head = LogitHead(head)
    assert torch.equal(trace.explained_logits(context, logit_head), 2 * head(hidden)[0])
    assert [arguments[1] is run.ids_and_positions for arguments in calls] == [True, True]
    assert cache.outputs == ({layer: output} if is_recorded else {})
    logit_head.backward(torch.tensor([[4, 1], [0, 0]]), torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
    context_given, gradient, *given = calls[-1]
    assert context_given is context
    torch.testing.assert_close(gradient, torch.stack([2 * (head.weight[4] - head.weight[1]), torch.zeros(3)])[None])
    assert len(given) == 1
    assert given[0] is saved
