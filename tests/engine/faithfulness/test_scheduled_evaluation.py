"""An evaluation has lower priority than other requests, and its results do not depend on them."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradellm_engine import (
    AttributionSettings,
    ComputationError,
    Engine,
    EvaluatedMethod,
    EvaluationItem,
    EvaluationSettings,
    EvaluationSummary,
    GradEllm,
    Metric,
    Request,
    Sampling,
    Sources,
)
from gradellm_engine.core import scheduler as scheduling
from gradellm_engine.core.request import RequestPhase
from gradellm_engine.core.scheduler import Scheduler
from gradellm_engine.methods.gradients.saliency import Saliency
from gradellm_engine.methods.random import Random
from gradellm_engine.model.loader import wrap_model
from gradellm_engine.model.runner import ModelRunner
from support.oracle import relative_error
from support.scheduler_harness import RequestOutput, collect, finish, run_alone, scheduler_of

ModelPath = Callable[[str], Path]
TICKS = 7  # scheduler steps of other requests for one batch of an evaluation
PROMPT = "Once upon a time, a small red fox did not like rain."
SETTINGS = EvaluationSettings(
    (EvaluatedMethod("it", GradEllm()), EvaluatedMethod("random", Random())),
    (Metric.PI_SOFT_NS, Metric.SOFT_NC, Metric.DELETION),
    pis=(0.2, 0.5, 0.8),
    stride=2,
)


@pytest.fixture(scope="module")
def load(model_path: ModelPath) -> Callable[[str], Engine]:
    return cache(lambda name: Engine.load(str(model_path(name)), threads=1))


@dataclass
class Batches:
    """The batches of an evaluation.

    Attributes:
        tick: index of the current scheduler step.
        ticks: scheduler step of each batch.
        sizes: tokens of each batch.
    """

    tick: int = 0
    ticks: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)


class Clock:
    """A clock that passes advance by a fixed time a token."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(scheduling, "time", types.SimpleNamespace(perf_counter=clock.perf_counter))
    monkeypatch.setattr(scheduling, "STEPS_PER_EVALUATION_BATCH", TICKS)
    monkeypatch.setattr(scheduling, "EVALUATION_BATCH_STEPS", 16.0)
    return clock


@pytest.fixture(autouse=True)
def batches(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Batches:
    """Records batches. Batches and prefill take 0.01 s a token, a decode step 0.1 s a token."""
    batches, tick, last_logits = Batches(), Scheduler.step, ModelRunner.last_logits
    step, prefill = ModelRunner.step, ModelRunner.prefill

    def counting_step(self: Scheduler, *args: Any) -> Iterator[None]:
        batches.tick += 1
        yield from tick(self, *args)

    def batch(self: ModelRunner, embeddings: Tensor, *args: Any) -> Tensor:
        num_tokens = embeddings.shape[0] * embeddings.shape[1]
        batches.ticks.append(batches.tick)
        batches.sizes.append(num_tokens)
        clock.now += 0.01 * num_tokens
        return last_logits(self, embeddings, *args)

    def slow_step(self: ModelRunner, chunks: Any, prefill: Any = ()) -> Tensor:
        clock.now += 0.1 * len(chunks) + 0.01 * sum(len(chunk.ids) for chunk in prefill)
        return step(self, chunks, prefill)

    def slow_prefill(self: ModelRunner, chunks: Any) -> None:
        clock.now += 0.01 * sum(len(chunk.ids) for chunk in chunks)
        prefill(self, chunks)

    monkeypatch.setattr(Scheduler, "step", counting_step)
    monkeypatch.setattr(ModelRunner, "last_logits", batch)
    monkeypatch.setattr(ModelRunner, "step", slow_step)
    monkeypatch.setattr(ModelRunner, "prefill", slow_prefill)
    return batches


def evaluation(engine: Engine, settings: EvaluationSettings = SETTINGS) -> Request:
    return engine.evaluation_request(PROMPT, settings, [70, 71, 72, 73])


def ordinary(engine: Engine, num_tokens: int = 100, attribution: AttributionSettings | None = None) -> Request:
    return engine.generation_request(
        "A blue bird sang.", Sampling(max_new_tokens=num_tokens, temperature=1.2, seed=5), attribution
    )


def analysing(scheduler: Scheduler, request: Request) -> None:
    """Run a submitted evaluation until its completion is complete."""
    while request.phase is not RequestPhase.POST_HOC:
        for _ in scheduler.step():
            pass


def items(output: RequestOutput) -> list[EvaluationItem]:
    return [event for event in output.events if isinstance(event, EvaluationItem)]


def assert_same(a: RequestOutput, b: RequestOutput) -> None:
    """Equal results up to rounding."""
    assert len(items(a)) == len(items(b)) > 0
    for actual, expected in zip(items(a), items(b), strict=True):
        assert (actual.step, actual.name, actual.metric, actual.flips) == (
            expected.step,
            expected.name,
            expected.metric,
            expected.flips,
        )
        assert actual.value == pytest.approx(expected.value, abs=1e-4)
    assert isinstance(a.events[-2], EvaluationSummary)
    assert isinstance(b.events[-2], EvaluationSummary)


@pytest.mark.parametrize("model", ["llama", "mistral"])
def test_an_evaluation_has_low_priority_and_the_same_results(
    load: Callable[[str], Engine], batches: Batches, model: str
) -> None:
    engine = load(model)
    explained = AttributionSettings(sources=Sources.PREFIX)
    alone = [run_alone(engine, request) for request in (evaluation(engine), ordinary(engine, 100, explained))]
    scheduler = scheduler_of(engine, max_running=2, num_tokens=400)
    requests = [evaluation(engine), ordinary(engine, 100, explained)]
    for request in requests:
        scheduler.submit(request)
    outputs, begun = [RequestOutput(), RequestOutput()], len(batches.ticks)
    while not requests[1].is_closed:
        for _ in scheduler.step():
            collect(requests, outputs)
    ticks = batches.ticks[begun:]
    assert len(ticks) > 5
    assert all(later - earlier >= TICKS for earlier, later in pairwise(ticks))
    assert outputs[1].ids == alone[1].ids
    assert [step.text for step in outputs[1].steps] == [step.text for step in alone[1].steps]
    for row, expected in zip(outputs[1].rows, alone[1].rows, strict=True):
        assert relative_error(row, expected.double()) <= 1e-5

    assert not requests[0].is_closed
    begun, before = len(batches.ticks), batches.tick
    finish(scheduler, requests, outputs)
    assert batches.ticks[begun:] == list(range(before + 1, before + 1 + len(batches.ticks) - begun))
    assert_same(outputs[0], alone[0])


def test_an_idle_engine_runs_an_evaluation_batch_every_step(
    load: Callable[[str], Engine], batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load("llama")
    turns, run_post_hoc = [], Request.run_post_hoc

    def noting(self: Request) -> None:
        turns.append(batches.tick)
        run_post_hoc(self)

    monkeypatch.setattr(Request, "run_post_hoc", noting)
    run_alone(engine, evaluation(engine))
    assert turns == list(range(turns[0], batches.tick + 1))
    # Between P and P_0 and the perturbed texts, methods run their own passes, and texts are made for each step.
    gaps = [later - earlier for earlier, later in pairwise(batches.ticks)]
    assert sorted(gaps)[:-1] == [1] * (len(gaps) - 1)
    assert 1 < max(gaps) <= 4


@pytest.mark.parametrize(("is_alone", "max_gap", "limit"), [(True, 0.5, 50), (False, 2.0, 150)])
def test_batches_keep_to_their_time(
    load: Callable[[str], Engine], batches: Batches, clock: Clock, is_alone: bool, max_gap: float, limit: int
) -> None:
    """Alone half a second, 50 tokens; with other requests what the longest gap leaves beside a step, 150 tokens."""
    engine = load("llama")
    scheduler = scheduler_of(engine, max_running=2, num_tokens=600, max_gap=max_gap)
    request = evaluation(engine)
    scheduler.submit(request)
    analysing(scheduler, request)
    if not is_alone:
        scheduler.submit(ordinary(engine, 180))
    for _ in range(150):
        for _ in scheduler.step():
            pass
    assert len(batches.sizes) >= 5
    # A batch holds whole sequences, at least one.
    longest = len(request.ids)
    assert all(size <= max(limit, longest) for size in batches.sizes)
    assert max(batches.sizes) > limit - longest


def test_two_evaluations_take_turns(load: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load("llama")
    alone = run_alone(engine, evaluation(engine))
    order, run_post_hoc = [], Request.run_post_hoc

    def noting(self: Request) -> None:
        order.append(requests.index(self))
        run_post_hoc(self)

    monkeypatch.setattr(Request, "run_post_hoc", noting)
    scheduler = scheduler_of(engine, max_running=3, num_tokens=600)
    requests = [evaluation(engine), evaluation(engine)]
    for request in requests:
        scheduler.submit(request)
        analysing(scheduler, request)
    begun = len(order)
    outputs = finish(scheduler, requests)
    turns = order[begun:]
    together = turns[: 2 * min(turns.count(0), turns.count(1))]
    assert len(together) > 20
    assert all(a != b for a, b in pairwise(together))
    for output in outputs:
        assert_same(output, alone)


@pytest.mark.parametrize("is_alone", [True, False])
def test_cancellation_between_batches_frees_its_slot(
    load: Callable[[str], Engine], batches: Batches, is_alone: bool
) -> None:
    engine = load("llama")
    scheduler = scheduler_of(engine, max_running=2, num_tokens=300)
    request, other = evaluation(engine), ordinary(engine)
    scheduler.submit(request)
    if not is_alone:
        scheduler.submit(other)
    while len(batches.ticks) < 3:
        for _ in scheduler.step():
            pass
    slot = request.slot
    assert slot is not None
    free = engine.model.runner.pool.num_free_tokens
    scheduler.cancel(request)
    assert request.is_closed
    assert request.slot is None
    assert request not in scheduler.running
    assert engine.model.runner.pool.num_free_tokens == free + slot.capacity
    count = len(batches.ticks)
    for _ in range(2 * TICKS):
        for _ in scheduler.step():
            pass
    assert len(batches.ticks) == count
    assert request.error is None
    if not is_alone:
        (output,) = finish(scheduler, [other])
        assert other.error is None
        assert output.ids == run_alone(engine, ordinary(engine)).ids


def test_cancellation_while_a_method_runs(load: Callable[[str], Engine], batches: Batches) -> None:
    engine = load("llama")
    scheduler = scheduler_of(engine, max_running=1, num_tokens=100)
    request = evaluation(engine, EvaluationSettings((EvaluatedMethod("it", Saliency()),)))
    scheduler.submit(request)
    while not batches.ticks:
        for _ in scheduler.step():
            pass
    for _ in scheduler.step():  # a pass of the method
        pass
    scheduler.cancel(request)
    assert engine.model.runner.pool.num_free_tokens == 100
    assert not scheduler.has_work()


def test_a_failing_evaluation_ends_alone(
    load: Callable[[str], Engine], batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are NaN during one of its batches, and whole for the other request."""
    engine = load("llama")
    runner = engine.model.runner
    weight = dict(runner.named_parameters())["model.norm.weight"]
    original, last_logits = weight.clone(), ModelRunner.last_logits

    def broken(self: ModelRunner, *args: Any) -> Tensor:
        with torch.no_grad():
            if len(batches.ticks) == 4:
                weight.fill_(torch.nan)
            try:
                return last_logits(self, *args)
            finally:
                weight.copy_(original)

    expected = run_alone(engine, ordinary(engine))
    batches.ticks.clear()
    monkeypatch.setattr(ModelRunner, "last_logits", broken)
    scheduler = scheduler_of(engine, max_running=2, num_tokens=300)
    requests = [evaluation(engine), ordinary(engine)]
    for request in requests:
        scheduler.submit(request)
    outputs = finish(scheduler, requests)
    assert isinstance(outputs[0].error, ComputationError)
    assert "not finite" in str(outputs[0].error)
    assert outputs[0].finished is None
    assert len(batches.ticks) == 5
    assert outputs[1].ids == expected.ids
    assert outputs[1].finished is not None
    pool = runner.pool
    assert pool.num_free_tokens == pool.num_tokens
    assert not scheduler.running


def test_a_model_dispatched_by_accelerate(model_path: ModelPath) -> None:
    """By accelerate, whose hooks move tensors between modules: see test_device_map."""
    path = model_path("llama")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    modules = ["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"]
    modules += [f"model.layers.{index}" for index in range(len(model.model.layers))]
    spread = dispatch_model(model, dict.fromkeys(modules, "cpu"), main_device="cpu", force_hooks=True)
    engines = Engine.load(str(path)), Engine(wrap_model(spread, AutoTokenizer.from_pretrained(path), name="spread"))
    assert_same(*(run_alone(engine, evaluation(engine)) for engine in engines))
