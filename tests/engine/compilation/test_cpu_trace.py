"""Passes that are written down give what they give call by call, to the last bit; what cannot be runs as it is."""

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
from gradellm_engine.compilation import cpu_trace
from gradellm_engine.compilation.cpu_trace import CpuTraceCache, TraceKey
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.ragged import ExplainSpec, SequenceChunk, Target
from support.kv_fixtures import filled, forget
from support.scheduler_harness import RequestOutput, finish, scheduler_of
from support.tiny_models import FAMILIES

# Mixtures of experts look at their numbers, to send tokens to experts.
LOOKING = {"deepseek_v3", "gpt_oss", "mixtral", "qwen3_moe"}
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
def lines(runner: ModelRunner) -> CpuTraceCache:
    assert runner.cpu_traces is not None
    return runner.cpu_traces


def told_by(engine: Engine, num_streams: int = 3) -> dict[str, list[RequestOutput]]:
    """What streams of every kind tell, several at a time, with more tokens in their passes from one to the next."""
    told = {}
    for name, settings in SETTINGS.items():
        scheduler = scheduler_of(engine, max_running=num_streams, num_tokens=300)
        streams = []
        for i in range(num_streams):
            sampling = Sampling(max_new_tokens=14 - 3 * i, temperature=0.9 * (i % 2), seed=i)
            streams.append(engine.generation_request("a small fox "[i:], sampling, settings))
            scheduler.submit(streams[-1])
        told[name] = finish(scheduler, streams)
    return told


def assert_same(one: Engine, other: Engine) -> None:
    """Two engines tell the same, to the last bit."""
    expected = told_by(other)
    for name, streams in told_by(one).items():
        for ours, theirs in zip(streams, expected[name], strict=True):
            assert ours.error is theirs.error is None
            assert ours.ids == theirs.ids
            assert [step.logprob for step in ours.steps] == [step.logprob for step in theirs.steps]
            assert ours.attributions.keys() == theirs.attributions.keys()
            assert all(map(torch.equal, ours.rows, theirs.rows))


@pytest.mark.parametrize("family", FAMILIES)
def test_streams_are_the_same_to_the_last_bit(load: Callable[..., Engine], family: str) -> None:
    by_line, by_call = load(family), load(family, use_graphs=False)
    lines = by_line.model.runner.cpu_traces
    assert lines is not None
    assert lines.is_possible == (family not in LOOKING)
    assert by_call.model.runner.cpu_traces is None
    assert_same(by_line, by_call)
    assert (len(lines) > 10) == lines.is_possible


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_in_other_types_too(load: Callable[..., Engine], dtype: str) -> None:
    by_line, by_call = load("llama", dtype=dtype), load("llama", dtype=dtype, use_graphs=False)
    assert_same(by_line, by_call)
    lines = by_line.model.runner.cpu_traces
    assert lines is not None
    assert len(lines) > 10


def test_a_line_calls_no_module_of_the_layers(runner: ModelRunner, lines: CpuTraceCache) -> None:
    called: list[nn.Module] = []
    parts = filled(runner, [5], EXPLAIN)
    runner.explained_pass(parts).heat_maps([Target(7)])
    forget(parts)
    for block in runner.blocks:
        block.register_forward_hook(lambda module, args, output: called.append(module))
    runner.explained_pass(parts).heat_maps([Target(7)])
    assert not called
    runner.cpu_traces = None
    forget(parts)
    runner.explained_pass(parts).heat_maps([Target(7)])
    assert called == runner.blocks


def test_a_kind_of_pass_is_written_down_when_it_is_due_again(runner: ModelRunner, lines: CpuTraceCache) -> None:
    before = len(lines)  # of one token that is explained, from the start
    assert before == 1
    parts = filled(runner, [5, 9])
    for count in (before, before + 1, before + 1):
        runner.step(parts)
        forget(parts)
        assert len(lines) == count


def test_no_more_lines_are_kept_than_that(
    runner: ModelRunner, lines: CpuTraceCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_trace, "MOST_LINES", 2)
    monkeypatch.setattr(lines, "uses_before", 1)
    for count in (1, 2, 3):
        runner.step(filled(runner, [4] * count))
    assert list(lines._lines) == [TraceKey(2), TraceKey(3)]


def test_passes_of_many_tokens_are_not_written_down(
    runner: ModelRunner, lines: CpuTraceCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_trace, "MOST_ROWS", 2)
    monkeypatch.setattr(lines, "uses_before", 1)
    runner.step(filled(runner, [4] * 3))
    assert TraceKey(3) not in lines._lines


def test_what_gives_other_numbers_each_time_runs_as_it_is(
    load: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    """A number that Python counts is written down as it was."""
    runner = load("llama", use_graphs=False).model.runner
    count = iter(range(1, 100))
    runner.blocks[1].get_submodule("mlp").register_forward_hook(lambda module, args, output: output * next(count))
    with caplog.at_level("INFO", "gradellm_engine"):
        runner.use_graphs()
    assert runner.cpu_traces is not None
    assert not runner.cpu_traces.is_possible
    assert "run call by call" in caplog.text
    assert runner.step(filled(runner, [5])).isfinite().all()


def test_what_cannot_be_watched_runs_as_it_is(
    load: Callable[..., Engine], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any) -> None:
        raise NotImplementedError("an operation of another world")

    monkeypatch.setattr(cpu_trace, "written_down", fails)
    runner = load("llama", use_graphs=False).model.runner
    with caplog.at_level("WARNING", "gradellm_engine"):
        runner.use_graphs()
    assert "another world" in caplog.text
    assert runner.cpu_traces is not None
    assert not runner.cpu_traces.is_possible
    assert runner.step(filled(runner, [5])).isfinite().all()


def test_what_looks_at_its_numbers_later_runs_as_it_is(runner: ModelRunner, lines: CpuTraceCache) -> None:
    def looks(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output * float(output.abs().max())

    runner.blocks[1].get_submodule("mlp").register_forward_hook(looks)
    parts = filled(runner, [5, 6])
    expected = runner.step(parts)
    for _ in range(3):
        forget(parts)
        assert torch.equal(runner.step(parts), expected)
    assert not lines.is_possible
    assert not len(lines)


def test_models_whose_weights_are_brought_to_where_they_are_needed_run_as_they_are(load: Callable[..., Engine]) -> None:
    runner = load("llama", use_graphs=False).model.runner
    runner.blocks[0]._hf_hook = object()  # type: ignore[assignment] # accelerate's
    runner.use_graphs()
    assert runner.cpu_traces is None


def test_an_error_on_the_way_costs_the_pass_alone(
    runner: ModelRunner, lines: CpuTraceCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = filled(runner, [5], EXPLAIN)
    expected = runner.explained_pass(parts).heat_maps([Target(7)])
    forget(parts)
    store = type(parts[0].slot).store

    def fails(*args: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(type(parts[0].slot), "store", fails)
    with pytest.raises(RuntimeError, match="no memory"):
        runner.explained_pass(parts)
    monkeypatch.setattr(type(parts[0].slot), "store", store)
    again = runner.explained_pass(parts).heat_maps([Target(7)])
    assert all(map(torch.equal, again, expected))


@pytest.fixture
def fresh_parts(runner: ModelRunner) -> Iterator[list[SequenceChunk]]:
    parts = filled(runner, [5, 8, 3], EXPLAIN)
    yield parts
    for part in parts:
        part.slot.close()


def test_a_line_outlives_the_pool(runner: ModelRunner, lines: CpuTraceCache, fresh_parts: list[SequenceChunk]) -> None:
    """A new pool is other memory; lines hold none of it."""
    targets = [Target(7)] * 3
    for _ in range(3):
        forget(fresh_parts)
        expected = runner.explained_pass(fresh_parts).heat_maps(targets)
    count = len(lines)
    runner.allocate_pool(200)
    again = runner.explained_pass(filled(runner, [5, 8, 3], EXPLAIN)).heat_maps(targets)
    assert all(map(torch.equal, again, expected))
    assert len(lines) == count
