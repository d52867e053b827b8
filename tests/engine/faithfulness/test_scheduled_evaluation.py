"""An evaluation gives way to all others, and is told what it would be told alone."""

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
from gradellm_engine.model.loader import assemble
from gradellm_engine.model.runner import ModelRunner
from support.oracle import relative_error
from support.scheduler_harness import RequestOutput, collect, finish, run_alone, scheduler_of

ModelPath = Callable[[str], Path]
TICKS = 7  # of others, for one batch
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
    """What an evaluation ran, and when.

    Attributes:
        tick: which one it is.
        ticks: of each batch.
        sizes: tokens of each batch.
    """

    tick: int = 0
    ticks: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)


class Clock:
    """Time as passes take it: so much for each of their tokens."""

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
    """Every batch, which takes a hundredth of a second a token, as reading a prompt does; a step takes a tenth."""
    batches, tick, last_logits = Batches(), Scheduler.step, ModelRunner.last_logits
    step, read = ModelRunner.step, ModelRunner.read

    def ticking(self: Scheduler, *args: Any) -> Iterator[None]:
        batches.tick += 1
        yield from tick(self, *args)

    def batch(self: ModelRunner, embeddings: Tensor, *args: Any) -> Tensor:
        num_tokens = embeddings.shape[0] * embeddings.shape[1]
        batches.ticks.append(batches.tick)
        batches.sizes.append(num_tokens)
        clock.now += 0.01 * num_tokens
        return last_logits(self, embeddings, *args)

    def stepping(self: ModelRunner, parts: Any) -> Tensor:
        clock.now += 0.1 * len(parts)
        return step(self, parts)

    def reading(self: ModelRunner, parts: Any) -> None:
        clock.now += 0.01 * sum(len(part.ids) for part in parts)
        read(self, parts)

    monkeypatch.setattr(Scheduler, "step", ticking)
    monkeypatch.setattr(ModelRunner, "last_logits", batch)
    monkeypatch.setattr(ModelRunner, "step", stepping)
    monkeypatch.setattr(ModelRunner, "read", reading)
    return batches


def evaluation(engine: Engine, settings: EvaluationSettings = SETTINGS) -> Request:
    return engine.evaluation_request(PROMPT, settings, [70, 71, 72, 73])


def ordinary(engine: Engine, num_tokens: int = 100, attribution: AttributionSettings | None = None) -> Request:
    return engine.generation_request(
        "A blue bird sang.", Sampling(max_new_tokens=num_tokens, temperature=1.2, seed=5), attribution
    )


def analysing(scheduler: Scheduler, stream: Request) -> None:
    """Run a stream that is submitted until its completion is there."""
    while stream.phase is not RequestPhase.POST_HOC:
        for _ in scheduler.step():
            pass


def items(told: RequestOutput) -> list[EvaluationItem]:
    return [event for event in told.events if isinstance(event, EvaluationItem)]


def assert_same(a: RequestOutput, b: RequestOutput) -> None:
    """Up to rounding."""
    assert len(items(a)) == len(items(b)) > 0
    for one, other in zip(items(a), items(b), strict=True):
        assert (one.step, one.name, one.metric, one.flips) == (other.step, other.name, other.metric, other.flips)
        assert one.value == pytest.approx(other.value, abs=1e-4)
    assert isinstance(a.events[-2], EvaluationSummary)
    assert isinstance(b.events[-2], EvaluationSummary)


@pytest.mark.parametrize("model", ["llama", "mistral"])
def test_while_others_run_it_gets_few_batches_and_changes_nothing(
    load: Callable[[str], Engine], batches: Batches, model: str
) -> None:
    engine = load(model)
    explained = AttributionSettings(sources=Sources.PREFIX)
    alone = [run_alone(engine, stream) for stream in (evaluation(engine), ordinary(engine, 100, explained))]
    scheduler = scheduler_of(engine, max_running=2, num_tokens=400)
    streams = [evaluation(engine), ordinary(engine, 100, explained)]
    for stream in streams:
        scheduler.submit(stream)
    told, begun = [RequestOutput(), RequestOutput()], len(batches.ticks)
    while not streams[1].is_closed:
        for _ in scheduler.step():
            collect(streams, told)
    ticks = batches.ticks[begun:]
    assert len(ticks) > 5
    assert all(later - earlier >= TICKS for earlier, later in pairwise(ticks))
    assert told[1].ids == alone[1].ids
    assert [step.text for step in told[1].steps] == [step.text for step in alone[1].steps]
    for row, expected in zip(told[1].rows, alone[1].rows, strict=True):
        assert relative_error(row, expected.double()) <= 1e-5

    assert not streams[0].is_closed
    begun, before = len(batches.ticks), batches.tick
    finish(scheduler, streams, told)
    assert batches.ticks[begun:] == list(range(before + 1, before + 1 + len(batches.ticks) - begun))
    assert_same(told[0], alone[0])


def test_alone_it_runs_a_batch_a_tick(
    load: Callable[[str], Engine], batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load("llama")
    turns, analyse = [], Request.run_post_hoc

    def noting(self: Request) -> None:
        turns.append(batches.tick)
        analyse(self)

    monkeypatch.setattr(Request, "run_post_hoc", noting)
    run_alone(engine, evaluation(engine))
    assert turns == list(range(turns[0], batches.tick + 1))
    # Between P and P_0 and the changed texts, methods have passes of their own, and texts are made of each step.
    gaps = [later - earlier for earlier, later in pairwise(batches.ticks)]
    assert sorted(gaps)[:-1] == [1] * (len(gaps) - 1)
    assert 1 < max(gaps) <= 4


@pytest.mark.parametrize("is_alone", [True, False])
def test_batches_take_their_time_and_no_more(
    load: Callable[[str], Engine], batches: Batches, clock: Clock, is_alone: bool
) -> None:
    """From the first one on. Alone half a second, which is 50 tokens; else 16 steps, which is 160."""
    engine = load("llama")
    scheduler = scheduler_of(engine, max_running=2, num_tokens=600)
    stream = evaluation(engine)
    scheduler.submit(stream)
    analysing(scheduler, stream)
    if not is_alone:
        scheduler.submit(ordinary(engine, 180))
    for _ in range(150):
        for _ in scheduler.step():
            pass
    assert len(batches.sizes) >= 5
    # Sequences are whole, and one runs at least.
    longest = len(stream.ids)
    limit = 50 if is_alone else 160
    assert all(size <= max(limit, longest) for size in batches.sizes)
    assert max(batches.sizes) > limit - longest


def test_two_evaluations_take_turns(load: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load("llama")
    alone = run_alone(engine, evaluation(engine))
    order, analyse = [], Request.run_post_hoc

    def noting(self: Request) -> None:
        order.append(streams.index(self))
        analyse(self)

    monkeypatch.setattr(Request, "run_post_hoc", noting)
    scheduler = scheduler_of(engine, max_running=3, num_tokens=600)
    streams = [evaluation(engine), evaluation(engine)]
    for stream in streams:
        scheduler.submit(stream)
        analysing(scheduler, stream)
    begun = len(order)
    told = finish(scheduler, streams)
    turns = order[begun:]
    together = turns[: 2 * min(turns.count(0), turns.count(1))]
    assert len(together) > 20
    assert all(a != b for a, b in pairwise(together))
    for its in told:
        assert_same(its, alone)


@pytest.mark.parametrize("is_alone", [True, False])
def test_it_is_cancelled_within_a_batch_and_frees_its_place(
    load: Callable[[str], Engine], batches: Batches, is_alone: bool
) -> None:
    engine = load("llama")
    scheduler = scheduler_of(engine, max_running=2, num_tokens=300)
    stream, other = evaluation(engine), ordinary(engine)
    scheduler.submit(stream)
    if not is_alone:
        scheduler.submit(other)
    while len(batches.ticks) < 3:
        for _ in scheduler.step():
            pass
    slot = stream.slot
    assert slot is not None
    free = engine.model.runner.pool.num_free_tokens
    scheduler.cancel(stream)
    assert stream.is_closed
    assert stream.slot is None
    assert stream not in scheduler.running
    assert engine.model.runner.pool.num_free_tokens == free + slot.capacity
    count = len(batches.ticks)
    for _ in range(2 * TICKS):
        for _ in scheduler.step():
            pass
    assert len(batches.ticks) == count
    assert stream.error is None
    if not is_alone:
        (told,) = finish(scheduler, [other])
        assert other.error is None
        assert told.ids == run_alone(engine, ordinary(engine)).ids


def test_it_is_cancelled_while_a_method_runs(load: Callable[[str], Engine], batches: Batches) -> None:
    engine = load("llama")
    scheduler = scheduler_of(engine, max_running=1, num_tokens=100)
    stream = evaluation(engine, EvaluationSettings((EvaluatedMethod("it", Saliency()),)))
    scheduler.submit(stream)
    while not batches.ticks:
        for _ in scheduler.step():
            pass
    for _ in scheduler.step():  # a pass of the method
        pass
    scheduler.cancel(stream)
    assert engine.model.runner.pool.num_free_tokens == 100
    assert not scheduler.has_work()


def test_one_that_fails_ends_alone(
    load: Callable[[str], Engine], batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its changed texts meet weights that are not numbers; the other stream does not."""
    engine = load("llama")
    runner = engine.model.runner
    weight = dict(runner.named_parameters())["model.norm.weight"]
    whole, last_logits = weight.clone(), ModelRunner.last_logits

    def broken(self: ModelRunner, *args: Any) -> Tensor:
        with torch.no_grad():
            if len(batches.ticks) == 4:
                weight.fill_(torch.nan)
            try:
                return last_logits(self, *args)
            finally:
                weight.copy_(whole)

    expected = run_alone(engine, ordinary(engine))
    batches.ticks.clear()
    monkeypatch.setattr(ModelRunner, "last_logits", broken)
    scheduler = scheduler_of(engine, max_running=2, num_tokens=300)
    streams = [evaluation(engine), ordinary(engine)]
    for stream in streams:
        scheduler.submit(stream)
    told = finish(scheduler, streams)
    assert isinstance(told[0].error, ComputationError)
    assert "not finite" in str(told[0].error)
    assert told[0].finished is None
    assert len(batches.ticks) == 5
    assert told[1].ids == expected.ids
    assert told[1].finished is not None
    pool = runner.pool
    assert pool.num_free_tokens == pool.num_tokens
    assert not scheduler.running


def test_a_model_that_is_spread(model_path: ModelPath) -> None:
    """By accelerate, whose hooks move tensors between modules: see test_placement."""
    path = model_path("llama")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    parts = ["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"]
    parts += [f"model.layers.{index}" for index in range(len(model.model.layers))]
    spread = dispatch_model(model, dict.fromkeys(parts, "cpu"), main_device="cpu", force_hooks=True)
    engines = Engine.load(str(path)), Engine(assemble(spread, AutoTokenizer.from_pretrained(path), name="spread"))
    assert_same(*(run_alone(engine, evaluation(engine)) for engine in engines))
