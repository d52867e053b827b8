"""Prompts that begin alike are prefilled once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from engine.core.scheduler.conftest import Passes
from gradellm_engine import (
    Delivery,
    Engine,
    GradEllm,
)
from gradellm_engine.core.scheduling.pass_timings import MAX_PREFILL_CHUNK_TOKENS
from gradellm_engine.kv_cache.pool import MIN_REUSED_TOKENS
from gradellm_engine.params import PRESETS
from support.scheduler_harness import (
    PREFIX,
    PROMPT,
    SAMPLED,
    TOLERANCE,
    Comparison,
    RequestOutput,
    collect,
    finish,
    prompt_ids,
    run,
    run_alone,
    scheduler_of,
)

MODELS = ["llama", "mistral", "gemma2"]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("model", MODELS)
def test_a_prefix_is_prefilled_once(load: Callable[..., Engine], passes: Passes, model: str, preset: str) -> None:
    """A request that repeats or continues an earlier one prefills only what is new, with the same output."""
    engine = load(model)
    sampling = replace(SAMPLED, max_new_tokens=3)
    ids = tuple(engine.tokenize(PROMPT).ids)
    answer = run_alone(engine, engine.generation_request(prompt_ids(*ids), sampling)).ids
    cases: list[tuple[tuple[int, ...], int]] = [
        (ids, 1),  # the last token alone
        ((*ids, *answer, 70, 71, 72), 4),  # the answer's last token was never read
        ((*ids[:-4], 80, 81), 2),
        ((99, *ids[1:]), len(ids)),
    ]
    scheduler = scheduler_of(engine, max_running=2, num_tokens=400)
    run(scheduler, [engine.generation_request(prompt_ids(*ids), sampling)])
    for (ids_of_prompt, num_unread), delivery in zip(cases, [*Delivery, *Delivery], strict=True):
        settings = replace(PREFIX, method=GradEllm.preset(preset), delivery=delivery, chunk_size=2)
        passes.recorded.clear()
        (output,) = run(scheduler, [engine.generation_request(prompt_ids(*ids_of_prompt), sampling, settings)])
        assert passes.num_new() == num_unread + 3 - 1
        pool = engine.model.runner.pool
        alone = run_alone(engine, engine.generation_request(prompt_ids(*ids_of_prompt), sampling, settings))
        engine.model.runner.pool = pool  # the pool with the prefixes again
        result = Comparison()
        result.add(alone, output, 0, None)
        assert result.num_vectors == 3
        assert max(result.errors) <= TOLERANCE


@pytest.mark.parametrize("preset", ["paper", "grad_eclip"])
def test_a_prefix_is_shared_with_a_running_request(load: Callable[..., Engine], passes: Passes, preset: str) -> None:
    engine = load("mistral")
    settings = replace(PREFIX, method=GradEllm.preset(preset))
    alone = run_alone(engine, engine.generation_request(PROMPT, SAMPLED, settings))
    scheduler = scheduler_of(engine, max_running=2, num_tokens=400)
    requests = [
        engine.generation_request(PROMPT, SAMPLED, settings),
        engine.generation_request(PROMPT, SAMPLED, settings),
    ]
    outputs = [RequestOutput(), RequestOutput()]
    scheduler.submit(requests[0])
    while len(outputs[0].steps) < 4:
        list(scheduler.step())
        collect(requests, outputs)
    scheduler.submit(requests[1])
    passes.recorded.clear()
    list(scheduler.step())
    slot = requests[1].slot
    finish(scheduler, requests, outputs)
    assert passes.num_new(slot) == 1 + 10 - 1
    for output in outputs:
        result = Comparison()
        result.add(alone, output, 0, None)
        assert result.num_vectors == 10
        assert max(result.errors) <= TOLERANCE


@pytest.mark.parametrize("room", [7, 512])  # prompt tokens of a pass
def test_prompts_that_arrive_together_are_prefilled_once(
    load: Callable[..., Engine], passes: Passes, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Two equal ones, and one that continues them; a fourth has nothing in common with them."""
    monkeypatch.setitem(MAX_PREFILL_CHUNK_TOKENS, "cpu", room)
    engine = load("llama")
    ids = tuple(engine.tokenize(PROMPT).ids)
    prompts = [ids, ids, (*ids, 70, 71, 72), tuple(reversed(ids))]
    settings = replace(PREFIX, method=GradEllm())
    alone = [run_alone(engine, engine.generation_request(prompt_ids(*each), SAMPLED, settings)) for each in prompts]
    scheduler = scheduler_of(engine, max_running=4, num_tokens=600)
    passes.recorded.clear()
    outputs = run(scheduler, [engine.generation_request(prompt_ids(*each), SAMPLED, settings) for each in prompts])
    num_prompt_tokens = 2 * len(ids) + 4  # each once, and the longer one's rest with the last token that it shares
    if room < MIN_REUSED_TOKENS:  # the ends of prompts are too short to be copied
        num_prompt_tokens += 2 * MIN_REUSED_TOKENS
    assert passes.num_new() <= num_prompt_tokens + sum(len(output.ids) for output in outputs)
    for expected, output in zip(alone, outputs, strict=True):
        result = Comparison()
        result.add(expected, output, 0, None)
        assert max(result.errors) <= TOLERANCE
    reused = [output.finished.num_reused_tokens for output in outputs if output.finished]
    assert sum(count > 0 for count in reused[:3]) >= 2
    assert reused[3] == 0


def test_a_prompt_that_waits_for_another_is_read_when_that_is_cancelled(load: Callable[..., Engine]) -> None:
    engine = load("llama")
    expected = run_alone(engine, engine.generation_request(PROMPT, SAMPLED))
    scheduler = scheduler_of(engine, max_running=2, num_tokens=400)
    first, second = (engine.generation_request(PROMPT, SAMPLED) for _ in range(2))
    for request in (first, second):
        scheduler.submit(request)
    next(iter(scheduler.step()))
    scheduler.cancel(first)
    (output,) = finish(scheduler, [second])
    assert output.ids == expected.ids


def test_the_prefix_of_a_cancelled_request_is_not_reused(load: Callable[..., Engine], passes: Passes) -> None:
    engine = load("llama")
    scheduler = scheduler_of(engine, max_running=2, num_tokens=300)
    request = engine.generation_request(PROMPT, SAMPLED)
    scheduler.submit(request)
    list(scheduler.step())
    scheduler.cancel(request)
    passes.recorded.clear()
    run(scheduler, [engine.generation_request(PROMPT, SAMPLED)])
    assert passes.num_new() == len(engine.tokenize(PROMPT).ids) + 9
