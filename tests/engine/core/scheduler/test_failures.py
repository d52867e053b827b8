"""Failures, cancellation and out of memory: which requests end, and that nothing of them is left."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.core.scheduler.conftest import BROKEN
from gradellm_engine import (
    AttributionSettings,
    ComputationError,
    Delivery,
    Engine,
    OutOfMemoryError,
    PromptInput,
)
from gradellm_engine.core.request import RequestPhase
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.base import SequenceChunk
from gradellm_engine.passes.explained_pass import ExplainedPass
from support.oracle import relative_error
from support.scheduler_harness import (
    PREFIX,
    PROMPT,
    SAMPLED,
    TOLERANCE,
    Comparison,
    RequestOutput,
    chunked,
    collect,
    finish,
    prompt_ids,
    run,
    run_alone,
    scheduler_of,
)


@pytest.mark.parametrize("delivery", Delivery)
def test_a_failing_request_ends_alone(
    load: Callable[..., Engine], breaking: Callable[[Engine], None], monkeypatch: pytest.MonkeyPatch, delivery: Delivery
) -> None:
    engine = load("gemma2")
    monkeypatch.setattr(engine.model.runner, "cpu_traces", None)  # one from the load would not call the hook
    settings = replace(PREFIX, delivery=delivery, chunk_size=3)
    prompts = [PromptInput(prompt=PROMPT), prompt_ids(256, 70, BROKEN), PromptInput(prompt="Another")]
    sound = [
        run_alone(engine, engine.generation_request(prompt, SAMPLED, settings)) for prompt in (prompts[0], prompts[2])
    ]
    breaking(engine)
    requests = [engine.generation_request(prompt, SAMPLED, settings) for prompt in prompts]
    # One that fails midway, with tokens whose scores are still due.
    requests.append(engine.attribution_request("abc", [70, 71, 72, 73, BROKEN, 74, 75], replace(PREFIX, chunk_size=2)))
    outputs = run(scheduler_of(engine, max_running=4, num_tokens=400), requests)
    for mine, expected in zip((outputs[0], outputs[2]), sound, strict=True):
        result = Comparison()
        result.add(expected, mine, 0, None)
        assert result.num_vectors == 10
        assert max(result.errors) <= TOLERANCE
    assert isinstance(outputs[1].error, ComputationError)
    assert "step 0" in str(outputs[1].error)
    assert outputs[1].steps == []
    assert isinstance(outputs[3].error, ComputationError)
    assert outputs[3].ids == [70, 71, 72, 73]
    assert list(outputs[3].attributions) == [0, 1, 2, 3]
    assert outputs[3].finished is None
    pool = engine.model.runner.pool
    assert pool.num_free_tokens == pool.num_tokens


def test_a_pass_that_fails_ends_its_own_requests_alone(
    load: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load("llama")
    scheduler = scheduler_of(engine, max_running=4, num_tokens=400)
    doomed = [engine.generation_request("ab", SAMPLED), engine.generation_request("cd", SAMPLED, chunked(3))]
    outputs = [RequestOutput(), RequestOutput()]
    for request in doomed:
        scheduler.submit(request)
    while any(request.phase is not RequestPhase.DECODE for request in doomed):
        for _ in scheduler.step():
            collect(doomed, outputs)
    with monkeypatch.context() as patched:
        patched.setattr(ModelRunner, "step", lambda *args: (_ for _ in ()).throw(RuntimeError("a kernel failed")))
        list(scheduler.step())
    assert all(isinstance(request.error, RuntimeError) for request in doomed)
    (after,) = run(scheduler, [engine.generation_request(PROMPT, SAMPLED, PREFIX)])
    assert after.ids == run_alone(engine, engine.generation_request(PROMPT, SAMPLED)).ids
    assert scheduler.running == []


class MemoryLimit:
    """Passes of more than `limit` chunks run out of memory, in the forward or in the backward pass."""

    def __init__(self, runner: ModelRunner, limit: int, where: str) -> None:
        self.num_refused = 0
        self._limit, self._where = limit, where
        self._step, self._explained_pass = runner.step, runner.explained_pass

    def _check(self, chunks: Sequence[SequenceChunk]) -> None:
        if len(chunks) > self._limit:
            self.num_refused += 1
            raise torch.OutOfMemoryError("no memory")

    def step(self, chunks: Sequence[SequenceChunk], prefill: Sequence[SequenceChunk] = ()) -> Tensor:
        logits = self._step(chunks, prefill)
        self._check([*prefill, *chunks])  # after the tokens were read, so that they have to be rolled back
        return logits

    def explained_pass(
        self, chunks: Sequence[SequenceChunk], given_targets: Sequence[Any] | None = None
    ) -> ExplainedPass:
        explained = self._explained_pass(chunks, given_targets)
        if self._where == "forward":
            self._check(chunks)
            return explained
        heat_maps = explained.heat_maps

        def failing(targets: Sequence[Any]) -> list[Tensor]:
            self._check(chunks)
            return heat_maps(targets)

        explained.heat_maps = failing  # type: ignore[method-assign]
        return explained


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("limit", [0, 1, 2])
def test_out_of_memory_shrinks_batches_and_fails_only_what_does_not_fit_alone(
    load: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, limit: int, where: str
) -> None:
    engine = load("llama")
    scheduler = scheduler_of(engine, max_running=4, num_tokens=600)
    runner = engine.model.runner
    memory = MemoryLimit(runner, limit, where)
    settings: list[AttributionSettings | None] = [None, PREFIX, PREFIX, chunked(3)]
    prompts = ["ab", "cd", PROMPT, "ef"]
    expected = [
        run_alone(engine, engine.generation_request(prompt, SAMPLED, each))
        for prompt, each in zip(prompts, settings, strict=True)
    ]
    scheduler = scheduler_of(engine, max_running=4, num_tokens=600)
    with monkeypatch.context() as patched:
        patched.setattr(runner, "step", memory.step)
        patched.setattr(runner, "explained_pass", memory.explained_pass)
        requests = [
            engine.generation_request(prompt, SAMPLED, each) for prompt, each in zip(prompts, settings, strict=True)
        ]
        outputs = run(scheduler, requests)
    assert memory.num_refused
    if limit == 0:
        failed = outputs if where == "forward" else outputs[1:]
        assert all(isinstance(output.error, OutOfMemoryError) for output in failed)
    else:
        for output, alone in zip(outputs, expected, strict=True):
            assert output.error is None
            assert output.ids == alone.ids
            assert output.finished is not None
            assert list(output.attributions) == list(alone.attributions)
            for index, attribution in output.attributions.items():
                assert relative_error(attribution.scores, alone.attributions[index].scores) <= TOLERANCE
    pool = runner.pool
    assert pool.num_free_tokens == pool.num_tokens
    (after,) = run(scheduler, [engine.generation_request(PROMPT, SAMPLED)])
    assert after.ids == run_alone(engine, engine.generation_request(PROMPT, SAMPLED)).ids


def test_a_request_cancelled_between_token_and_scores(load: Callable[..., Engine]) -> None:
    engine = load("llama")
    expected = run_alone(engine, engine.generation_request(PROMPT, SAMPLED, PREFIX))
    scheduler = scheduler_of(engine, max_running=2, num_tokens=200)
    requests = [
        engine.generation_request(PROMPT, SAMPLED, PREFIX),
        engine.generation_request("b" * 30, SAMPLED, PREFIX),
    ]
    outputs = [RequestOutput(), RequestOutput()]
    for request in requests:
        scheduler.submit(request)
    while not requests[1].is_closed:
        for _ in scheduler.step():
            collect(requests, outputs)
            if len(outputs[1].steps) == 3 and not requests[1].is_closed:
                scheduler.cancel(requests[1])
    assert len(outputs[1].attributions) == 2
    finish(scheduler, requests, outputs)
    assert len(outputs[1].steps) == 3
    assert outputs[1].finished is None
    assert requests[1].error is None
    result = Comparison()
    result.add(expected, outputs[0], 0, None)
    assert max(result.errors) <= TOLERANCE
    assert engine.model.runner.pool.num_free_tokens == 200


def test_cancelling_twice_and_after_the_end(load: Callable[..., Engine]) -> None:
    engine = load("llama")
    scheduler = scheduler_of(engine, max_running=1, num_tokens=100)
    request = engine.generation_request("ab", SAMPLED)
    (output,) = run(scheduler, [request])
    for _ in range(2):
        scheduler.cancel(request)
    assert output.finished is not None
    assert engine.model.runner.pool.num_retained_tokens > 0  # what it left is still there


def test_a_failed_request_keeps_no_graph_alive(load: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is reported later; until then its traceback must not hold the graph."""
    engine = load("llama")
    graphs: list[weakref.ref[ExplainedPass]] = []
    explained_pass = ModelRunner.explained_pass

    def watched(self: ModelRunner, *args: Any) -> ExplainedPass:
        explained = explained_pass(self, *args)
        graphs.append(weakref.ref(explained))
        return explained

    monkeypatch.setattr(ModelRunner, "explained_pass", watched)
    monkeypatch.setattr(ExplainedPass, "heat_maps", lambda *args: [torch.full((1, 3), torch.nan)])
    request = engine.generation_request("ab", SAMPLED, PREFIX)
    run(scheduler_of(engine, max_running=1, num_tokens=100), [request])
    assert isinstance(request.error, ComputationError)
    gc.collect()
    assert [ref() for ref in graphs] == [None]
