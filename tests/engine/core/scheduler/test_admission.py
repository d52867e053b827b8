"""KV slots are given first come first served, and all of them are freed."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from dataclasses import replace

from engine.core.scheduler.conftest import Passes
from gradellm_engine import (
    Engine,
    FinishReason,
    Request,
    Sampling,
)
from gradellm_engine.core.request import RequestPhase
from support.scheduler_harness import (
    PREFIX,
    PROMPT,
    SAMPLED,
    chunked,
    finish,
    prompt_ids,
    run,
    scheduler_of,
)


def test_after_many_requests_all_kv_memory_is_free_and_contiguous(load: Callable[..., Engine]) -> None:
    engine = load("llama")
    scheduler = scheduler_of(engine, max_running=8, num_tokens=400)
    pool = engine.model.runner.pool
    rng = random.Random(5)
    for batch in range(20):
        requests = []
        for n in range(10):
            prompt = "".join(rng.choice("abc") for _ in range(rng.randint(1, 40)))
            settings = rng.choice([None, None, None, PREFIX, chunked(2)])
            requests.append(
                engine.generation_request(prompt, Sampling(max_new_tokens=rng.randint(1, 3), seed=n), settings)
            )
            scheduler.submit(requests[-1])
        for request in requests[: batch % 3]:
            list(scheduler.step())
            scheduler.cancel(request)
        finish(scheduler, requests)
        assert pool.num_free_tokens == pool.num_tokens
    assert pool.num_retained_tokens > 0
    all_slots = pool.allocate(pool.num_tokens)  # cached prefixes are evicted for it, and no slot is left over
    assert all_slots is not None
    all_slots.close()


def test_dropped_requests_free_their_slots(load: Callable[..., Engine], passes: Passes) -> None:
    engine = load("llama")
    scheduler = scheduler_of(engine, max_running=2, num_tokens=200)
    for request in [engine.generation_request(PROMPT, SAMPLED, PREFIX), engine.generation_request("ab", SAMPLED)]:
        scheduler.submit(request)
    for _ in range(4):
        list(scheduler.step())
    pool = engine.model.runner.pool
    assert pool.num_free_tokens < 200
    scheduler.running.clear()
    del request
    passes.recorded.clear()
    gc.collect()
    assert pool.num_free_tokens == 200
    assert pool.allocate(200) is not None  # in one block


def test_running_places_are_given_first_come_first_served(load: Callable[..., Engine]) -> None:
    engine = load("llama")
    scheduler = scheduler_of(engine, max_running=2, num_tokens=1000)
    requests = [
        engine.generation_request("ab" * n, replace(SAMPLED, max_new_tokens=tokens))
        for n, tokens in ((1, 9), (30, 2), (1, 1), (20, 3), (2, 2))
    ]
    order: list[Request] = []
    for request in requests:
        scheduler.submit(request)
    while not all(request.is_closed for request in requests):
        for _ in scheduler.step():
            assert len(scheduler.running) <= 2
            order += [s for s in requests if s.phase is not RequestPhase.WAITING and s not in order]
    assert order == requests


def test_kv_memory_is_given_first_come_first_served(load: Callable[..., Engine]) -> None:
    """A small request does not overtake a large one that waits for room, which would otherwise wait forever."""
    engine = load("llama")
    scheduler = scheduler_of(engine, max_running=8, num_tokens=100)
    large, larger, small = (
        engine.generation_request(prompt_ids(*[70] * n), replace(SAMPLED, max_new_tokens=4)) for n in (56, 76, 6)
    )
    for request in (large, larger, small):
        scheduler.submit(request)
    list(scheduler.step())
    assert [s.phase is RequestPhase.WAITING for s in (large, larger, small)] == [False, True, True]
    while not large.is_closed:
        list(scheduler.step())
        assert larger.phase is small.phase is RequestPhase.WAITING or large.is_closed
    list(scheduler.step())
    assert larger.phase is not RequestPhase.WAITING
    assert small.phase is not RequestPhase.WAITING  # both have room
    finish(scheduler, [larger, small])


def test_cancellation_admits_the_next_request(load: Callable[..., Engine]) -> None:
    engine = load("llama")
    scheduler = scheduler_of(engine, max_running=1, num_tokens=100)
    first, second, third = (engine.generation_request("ab", SAMPLED) for _ in range(3))
    for request in (first, second, third):
        scheduler.submit(request)
    list(scheduler.step())
    scheduler.cancel(second)
    scheduler.cancel(first)
    list(scheduler.step())
    assert third.phase is not RequestPhase.WAITING
    finish(scheduler, [third])


def test_a_request_whose_forced_tokens_are_its_whole_completion(load: Callable[..., Engine]) -> None:
    """It ends without a pass."""
    engine = load("llama")
    scheduler = scheduler_of(engine, max_running=1, num_tokens=100)
    request = engine.generation_request("ab", replace(SAMPLED, max_new_tokens=2), PREFIX, forced_ids=[70, 71])
    (output,) = run(scheduler, [request])
    assert output.finished is not None
    assert output.finished.reason is FinishReason.MAX_NEW_TOKENS
    assert not scheduler.waiting
    assert not scheduler.running
