"""How decode steps and the prefill of long prompts share the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from engine.core.scheduler.conftest import Clock, Passes
from gradellm_engine import (
    Attribution,
    AttributionSettings,
    Engine,
    GradEllm,
    Step,
)
from gradellm_engine.core.request import RequestPhase
from gradellm_engine.core.scheduling.pass_timings import MAX_PREFILL_CHUNK_TOKENS, MIN_PREFILL_CHUNK_TOKENS
from support.scheduler_harness import (
    PREFIX,
    SAMPLED,
    chunked,
    finish,
    run,
    scheduler_of,
)


def test_a_long_prompt_does_not_delay_a_short_one(load: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAX_PREFILL_CHUNK_TOKENS, "cpu", 24)
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


@pytest.mark.parametrize("settings", [None, PREFIX, chunked(4)], ids=["plain", "per_token", "chunked"])
@pytest.mark.parametrize("max_gap", [3.0, 6.0])
def test_prompts_fit_the_gap_between_tokens(
    load: Callable[..., Engine],
    passes: Passes,
    clock: Clock,
    max_gap: float,
    settings: AttributionSettings | None,
) -> None:
    """Running requests get a token in every step, and prompts as many tokens as the longest gap leaves room for."""
    engine = load("llama")
    scheduler = scheduler_of(engine, max_running=4, num_tokens=800, max_gap=max_gap)
    clock.pass_seconds, clock.token_seconds = 0.5, 0.02
    run(scheduler, [engine.generation_request("d" * 100, replace(SAMPLED, max_new_tokens=1))])
    assert [len(chunks[0].ids) for chunks in passes.of("prefill")] == [100]  # in one chunk, with nothing else to run
    running = engine.generation_request("bc", replace(SAMPLED, max_new_tokens=30), settings)
    scheduler.submit(running)
    while len(running.ids) < 12:
        list(scheduler.step())
    passes.recorded.clear()
    long = engine.generation_request("a" * 240, replace(SAMPLED, max_new_tokens=1))
    scheduler.submit(long)
    gaps = []
    while long.phase in (RequestPhase.WAITING, RequestPhase.PREFILL):
        before, num_tokens = clock.now, len(running.ids)
        list(scheduler.step())
        assert len(running.ids) == num_tokens + 1
        gaps.append(clock.now - before)
    assert max(gaps) <= max_gap
    lengths = [len(chunks[0].ids) for chunks in passes.of("prefill")]
    assert sum(lengths) == 240
    assert max(gaps) >= 0.5 * max_gap  # the room is used
    finish(scheduler, [running, long])


def test_prefill_chunks_have_a_minimum_size(
    load: Callable[..., Engine], passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts advance even where a decode step alone takes longer than the longest gap."""
    monkeypatch.setitem(MIN_PREFILL_CHUNK_TOKENS, "cpu", 64)  # as on a GPU
    engine = load("llama")
    scheduler = scheduler_of(engine, max_running=4, num_tokens=800, max_gap=0.001)
    running, long = (
        engine.generation_request(prompt, replace(SAMPLED, max_new_tokens=30)) for prompt in ("bc", "a" * 200)
    )
    scheduler.submit(running)
    while len(running.ids) < 6:
        list(scheduler.step())
    passes.recorded.clear()
    scheduler.submit(long)
    while long.phase in (RequestPhase.WAITING, RequestPhase.PREFILL):
        list(scheduler.step())
    assert [len(chunks[0].ids) for chunks in passes.of("prefill")] == [64, 64, 64, 8]
    assert not running.is_closed
    finish(scheduler, [running, long])


def test_prompts_share_the_pass_of_a_decode_step(load: Callable[..., Engine], passes: Passes) -> None:
    """Several prompts at a time; one that ends gets its first token from the pass, and scores right after it."""
    engine = load("llama")
    scheduler = scheduler_of(engine, max_running=4, num_tokens=800, max_gap=1000.0)
    running = engine.generation_request("bc", replace(SAMPLED, max_new_tokens=30), PREFIX)
    scheduler.submit(running)
    while len(running.ids) < 6:
        list(scheduler.step())
    prompts = [engine.generation_request(text, SAMPLED, each) for text, each in (("d" * 50, None), ("e" * 50, PREFIX))]
    for request in prompts:
        scheduler.submit(request)
        request.take_events()
    passes.recorded.clear()
    list(scheduler.step())
    assert [name for name, _ in passes.recorded] == ["prefill", "step", "explained_pass"]
    (_, prefill), (_, step), (_, replayed) = passes.recorded
    assert [len(chunk.ids) for chunk in prefill] == [50, 50]
    assert [chunk.slot for chunk in step] == [request.slot for request in (running, *prompts)]
    assert {id(chunk.slot) for chunk in replayed} == {id(running.slot), id(prompts[1].slot)}
    assert [[type(event) for event in request.take_events()] for request in prompts] == [[Step], [Step, Attribution]]
    finish(scheduler, [running, *prompts])


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
