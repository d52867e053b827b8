"""How decode steps and the prefill of long prompts share the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from engine.core.scheduler.conftest import Clock, Passes
from gradellm_engine import (
    AttributionSettings,
    Engine,
    GradEllm,
)
from gradellm_engine.core import scheduler as scheduling
from gradellm_engine.core.request import RequestPhase
from support.scheduler_harness import (
    PREFIX,
    SAMPLED,
    chunked,
    finish,
    run,
    scheduler_of,
)


def test_a_long_prompt_does_not_delay_a_short_one(load: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scheduling.MAX_PREFILL_CHUNK_TOKENS, "cpu", 24)
    engine = load("llama")
    scheduler = scheduler_of(engine, max_running=4, num_tokens=600)
    long = engine.generation_request("a" * 240, replace(SAMPLED, max_new_tokens=2))
    short = engine.generation_request("bc", replace(SAMPLED, max_new_tokens=2))
    scheduler.submit(long)
    list(scheduler.step())
    scheduler.submit(short)
    num_steps = 0
    while not short.is_closed:
        list(scheduler.step())
        num_steps += 1
    assert num_steps <= 4
    assert long.phase is RequestPhase.PREFILL


def test_prefill_chunks_are_small_while_others_decode(
    load: Callable[..., Engine], passes: Passes, clock: Clock
) -> None:
    """Running requests get a token every step, and the prompt about doubles the duration of a step."""
    engine = load("llama")
    scheduler = scheduler_of(engine, max_running=4, num_tokens=800)
    running = engine.generation_request("bc", replace(SAMPLED, max_new_tokens=30))
    run(scheduler, [engine.generation_request("d" * 100, replace(SAMPLED, max_new_tokens=1))])
    assert [len(chunks[0].ids) for chunks in passes.of("prefill")] == [100]  # in one chunk, with nothing else to run
    scheduler.submit(running)
    while len(running.ids) < 6:
        list(scheduler.step())
    passes.recorded.clear()
    long = engine.generation_request("a" * 200, replace(SAMPLED, max_new_tokens=1))
    scheduler.submit(long)
    step_seconds = clock.pass_seconds + clock.token_seconds
    while not running.is_closed and long.phase in (RequestPhase.WAITING, RequestPhase.PREFILL):
        before, num_tokens = clock.now, len(running.ids)
        list(scheduler.step())
        assert len(running.ids) == num_tokens + 1
        assert clock.now - before <= 3 * step_seconds
    assert not running.is_closed
    lengths = [len(chunks[0].ids) for chunks in passes.of("prefill")]
    assert sum(lengths) == 200
    assert len(lengths) > 5
    assert max(lengths) <= 2 * scheduling.MIN_PREFILL_CHUNK_TOKENS["cpu"]
    finish(scheduler, [running, long])


def test_prefill_chunks_have_a_minimum_size(
    load: Callable[..., Engine], passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(scheduling.MIN_PREFILL_CHUNK_TOKENS, "cpu", 64)  # as on a GPU
    engine = load("llama")
    scheduler = scheduler_of(engine, max_running=4, num_tokens=800)
    running, long = (
        engine.generation_request(prompt, replace(SAMPLED, max_new_tokens=30)) for prompt in ("bc", "a" * 200)
    )
    scheduler.submit(running)
    while len(running.ids) < 6:
        list(scheduler.step())
    scheduler.timings = scheduling.PassTimings(
        step=0.001, prefill_token=0.001
    )  # a chunk of one token would take as long as a step
    passes.recorded.clear()
    scheduler.submit(long)
    while long.phase in (RequestPhase.WAITING, RequestPhase.PREFILL):
        list(scheduler.step())
    assert [len(chunks[0].ids) for chunks in passes.of("prefill")] == [64, 64, 64, 8]
    assert not running.is_closed
    finish(scheduler, [running, long])


def test_decoding_requests_share_a_pass(load: Callable[..., Engine], passes: Passes) -> None:
    """The weights are read once for all of them, explained or not."""
    engine = load("mistral")
    scheduler = scheduler_of(engine, max_running=5, num_tokens=500)
    settings = [None, PREFIX, chunked(4), AttributionSettings(GradEllm.preset("grad_eclip")), None]
    requests = [engine.generation_request("ab", replace(SAMPLED, max_new_tokens=20), each) for each in settings]
    for request in requests:
        scheduler.submit(request)
    while any(request.phase is not RequestPhase.DECODE for request in requests):
        list(scheduler.step())
    passes.recorded.clear()
    list(scheduler.step())
    ((name, chunks), *_) = passes.recorded
    assert name == "explained_pass"
    assert len(chunks) == 5
    assert [chunk.explain is not None for chunk in chunks].count(True) == 2
    for request in requests:
        scheduler.cancel(request)
