"""Followed completions: explained as given ones are, in chunks as tokens come, with a slot that grows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.generation_helpers import PREFIX, PROMPT, same
from gradellm_engine import (
    AttributionSettings,
    BusyError,
    Engine,
    FinishReason,
    GradEllm,
    InvalidRequestError,
    Resolution,
    Sampling,
    TokenSelection,
    method_named,
)
from gradellm_engine.core.following.agreement import GivenLogprobs, NumberFormat, Verdict
from gradellm_engine.core.following.given_tokens import FollowSettings
from gradellm_engine.core.following.request import FollowedRequest
from gradellm_engine.core.outputs import ChunkAgreement
from gradellm_engine.core.request import RequestPhase
from gradellm_engine.core.scheduler import Scheduler
from support.scheduler_harness import RequestOutput, collect, finish, run_alone, scheduler_of

NUM_TOKENS = 4096
FLOAT32 = FollowSettings(upstream_dtype=NumberFormat.FLOAT32)


def written(engine: Engine, num_tokens: int = 40) -> tuple[list[int], list[GivenLogprobs]]:
    """What another engine writes: ids and log-probabilities."""
    draw = random.Random(7)
    ids = [draw.randrange(10, engine.info.vocab_size) for _ in range(num_tokens)]
    output = run_alone(engine, engine.attribution_request(PROMPT, ids, AttributionSettings(chunk_size=64)))
    return ids, [GivenLogprobs(step.logprob) for step in output.steps]


def follow(
    scheduler: Scheduler, request: FollowedRequest, pieces: Sequence[tuple[Sequence[int], Sequence[GivenLogprobs]]]
) -> RequestOutput:
    """Submit a request, and add the pieces one after another, with steps in between while there is work."""
    output = RequestOutput()
    scheduler.submit(request)
    for ids, logprobs in pieces:
        scheduler.append(request, ids, logprobs)
        while scheduler.has_work():
            for _ in scheduler.step():
                collect([request], [output])
    scheduler.finish(request)
    return finish(scheduler, [request], [output])[0]


def pieces_of(ids: Sequence[int], logprobs: Sequence[GivenLogprobs], sizes: Sequence[int]) -> list[tuple[Any, Any]]:
    bounds = [0]
    for size in sizes:
        bounds.append(min(len(ids), bounds[-1] + size))
    return [(ids[a:b], logprobs[a:b]) for a, b in zip(bounds, [*bounds[1:], len(ids)], strict=True)]


@pytest.mark.parametrize("resolution", [Resolution.TOKEN, Resolution.WORD])
@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 30), max_size=8), chunk_size=st.integers(1, 20))
def test_equals_a_given_completion(engine: Engine, resolution: Resolution, sizes: list[int], chunk_size: int) -> None:
    ids, logprobs = written(engine)
    attribution = replace(PREFIX, chunk_size=chunk_size, resolution=resolution)
    expected = run_alone(engine, engine.attribution_request(PROMPT, ids, attribution))
    scheduler = scheduler_of(engine, max_running=1, num_tokens=NUM_TOKENS)
    request = engine.follow_request(PROMPT, attribution, FLOAT32)
    output = follow(scheduler, request, pieces_of(ids, logprobs, sizes))
    assert output.error is None
    assert [(s.id, s.text, s.start, s.end, s.word, s.source_index) for s in output.steps] == [
        (s.id, s.text, s.start, s.end, s.word, s.source_index) for s in expected.steps
    ]
    assert output.attributions.keys() == expected.attributions.keys()
    for index, row in output.attributions.items():
        assert same(row.scores, expected.attributions[index].scores)
    assert output.finished is not None
    assert output.finished.reason is FinishReason.END_OF_COMPLETION
    assert output.finished.verdict is Verdict.SAME
    assert output.finished.agreement is not None
    assert output.finished.agreement.num_tokens == len(ids)
    chunks = [event for event in output.events if isinstance(event, ChunkAgreement)]
    assert sum(chunk.chunk.num_tokens for chunk in chunks) == len(ids)
    assert chunks[-1].total.num_tokens == len(ids)


@settings(max_examples=25, deadline=None)
@given(chunk_size=st.integers(1, 12), num_per_pass=st.integers(0, 12))
def test_rows_lag_by_a_chunk_and_a_pass(engine: Engine, chunk_size: int, num_per_pass: int) -> None:
    """While a pass takes no longer than a chunk's tokens do, no row comes later than these and one pass after."""
    whole = engine.tokenize("It went into the wood and slept there. " * 3).ids[1:]  # tokens of whole characters
    ids = iter(whole)
    scheduler = scheduler_of(engine, max_running=1, num_tokens=NUM_TOKENS)
    request = engine.follow_request(PROMPT, replace(PREFIX, chunk_size=chunk_size), FLOAT32)
    output, num_written = RequestOutput(), 0

    def write(count: int) -> None:
        nonlocal num_written
        for _, token_id in zip(range(count), ids, strict=False):
            scheduler.append(request, [token_id])
            num_written += 1

    scheduler.submit(request)
    list(scheduler.step())
    while num_written < len(whole):
        write(1)
        while scheduler.has_work():
            explained = len(output.attributions)
            write(min(num_per_pass, chunk_size))  # while the pass runs
            for _ in scheduler.step():
                collect([request], [output])
            if len(output.attributions) > explained:
                assert num_written - explained <= chunk_size + min(num_per_pass, chunk_size)
    assert num_written - len(output.attributions) < chunk_size + num_per_pass


def test_waits_for_a_chunk_or_a_flush(engine: Engine) -> None:
    ids = engine.tokenize("It went into the wood and slept there.").ids[1:]  # of whole characters
    logprobs = [GivenLogprobs(-1.0)] * len(ids)
    scheduler = scheduler_of(engine, max_running=1, num_tokens=NUM_TOKENS)
    request = engine.follow_request(PROMPT, AttributionSettings(chunk_size=16), FLOAT32)
    scheduler.submit(request)
    output = RequestOutput()

    def run() -> int:
        while scheduler.has_work():
            for _ in scheduler.step():
                collect([request], [output])
        return len(output.attributions)

    assert run() == 0  # the prompt is read
    assert request.phase is RequestPhase.IDLE
    scheduler.append(request, ids[:15], logprobs[:15])
    assert run() == 0
    scheduler.append(request, ids[15:17], logprobs[15:17])
    assert run() == 17  # a pass takes all that is there
    scheduler.append(request, ids[17:20])
    assert run() == 17
    scheduler.flush(request)
    assert run() == 20
    assert request.phase is RequestPhase.IDLE
    scheduler.flush(request)  # with nothing to explain
    assert run() == 20
    scheduler.finish(request)
    collect([request], [output])
    assert request.is_closed  # without another pass
    assert output.finished is not None
    assert output.finished.num_attributed_tokens == 20
    assert output.finished.agreement is not None
    assert output.finished.agreement.num_tokens == 17  # the others came without log-probabilities


def test_idle_requests_keep_no_other_waiting(engine: Engine) -> None:
    scheduler = scheduler_of(engine, max_running=1, num_tokens=NUM_TOKENS)
    scheduler.max_followed = 2
    followed = [engine.follow_request(PROMPT, None, FLOAT32) for _ in range(3)]
    for request in followed:
        scheduler.submit(request)
    scheduler.admit()
    assert list(scheduler.waiting) == followed[2:]
    own = engine.generation_request(PROMPT, Sampling(max_new_tokens=3))
    scheduler.submit(own)
    (output,) = finish(scheduler, [own])
    assert len(output.steps) == 3
    assert not any(request.is_closed for request in followed)
    scheduler.finish(followed[2])  # it waits still, and has nothing to explain
    assert followed[2].is_closed
    assert not scheduler.waiting
    for request in followed:
        scheduler.cancel(request)


def test_slot_grows(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradellm_engine.core.following.request.FIRST_SLOT_TOKENS", 8)
    ids, logprobs = written(engine, 120)
    expected = run_alone(engine, engine.attribution_request(PROMPT, ids, AttributionSettings(chunk_size=64)))
    scheduler = scheduler_of(engine, max_running=1, num_tokens=NUM_TOKENS)
    request = engine.follow_request(PROMPT, None, FLOAT32)
    assert request.num_slot_tokens == request.num_tokens + 8
    output = follow(scheduler, request, pieces_of(ids, logprobs, [5, 70, 20, 3]))
    for index, row in output.attributions.items():
        assert same(row.scores, expected.attributions[index].scores)
    assert len(output.attributions) == 120


def test_no_room_to_grow(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradellm_engine.core.following.request.FIRST_SLOT_TOKENS", 8)
    ids, _ = written(engine)
    request = engine.follow_request(PROMPT, None, FLOAT32)
    scheduler = scheduler_of(engine, max_running=1, num_tokens=request.num_slot_tokens + 20)
    scheduler.submit(request)
    scheduler.admit()
    with pytest.raises(BusyError, match="no room for"):
        scheduler.append(request, ids)
    scheduler.append(request, ids[:8])  # it can go on
    scheduler.cancel(request)


def test_selected_tokens(engine: Engine) -> None:
    ids, logprobs = written(engine)
    attribution = AttributionSettings(chunk_size=4, tokens=TokenSelection((1, 2, 13, 39)))
    scheduler = scheduler_of(engine, max_running=1, num_tokens=NUM_TOKENS)
    output = follow(scheduler, engine.follow_request(PROMPT, attribution, FLOAT32), pieces_of(ids, logprobs, [3] * 20))
    expected = run_alone(engine, engine.attribution_request(PROMPT, ids, attribution))
    assert list(output.attributions) == [1, 2, 13, 39]
    for index, row in output.attributions.items():
        assert same(row.scores, expected.attributions[index].scores)


@pytest.mark.parametrize("name", ["saliency", "occlusion", "random"])
def test_methods_over_completions_run_at_the_end(engine: Engine, name: str) -> None:
    ids, logprobs = written(engine, 6)
    attribution = AttributionSettings(method_named(name).switches())
    scheduler = scheduler_of(engine, max_running=1, num_tokens=NUM_TOKENS)
    output = follow(scheduler, engine.follow_request(PROMPT, attribution, FLOAT32), [(ids, logprobs)])
    expected = run_alone(engine, engine.attribution_request(PROMPT, ids, attribution))
    assert len(output.attributions) == 6
    for index, row in output.attributions.items():
        assert same(row.scores, expected.attributions[index].scores)


def test_resumed(engine: Engine) -> None:
    ids, logprobs = written(engine)
    attribution = AttributionSettings(chunk_size=8)
    scheduler = scheduler_of(engine, max_running=1, num_tokens=NUM_TOKENS)
    whole = follow(scheduler, engine.follow_request(PROMPT, attribution, FLOAT32), pieces_of(ids, logprobs, [8] * 5))
    agreement = next(e.total for e in whole.events if isinstance(e, ChunkAgreement) and e.total.num_tokens == 16)
    resumed = replace(FLOAT32, ids=tuple(ids[:16]), agreement=agreement)
    rest = follow(scheduler, engine.follow_request(PROMPT, attribution, resumed), [(ids[16:], logprobs[16:])])
    assert [step.index for step in rest.steps] == list(range(16, 40))
    assert "".join(s.text for s in whole.steps[16:]) == "".join(s.text for s in rest.steps)
    for index, row in rest.attributions.items():
        assert same(row.scores, whole.attributions[index].scores)
    assert rest.finished is not None
    assert rest.finished.agreement is not None
    assert rest.finished.agreement.num_tokens == 40


def test_another_model_is_told(engine: Engine) -> None:
    ids, logprobs = written(engine)
    scheduler = scheduler_of(engine, max_running=1, num_tokens=NUM_TOKENS)
    shifted = [GivenLogprobs(each.chosen - 0.2 * (-1) ** i) for i, each in enumerate(logprobs)]
    output = follow(scheduler, engine.follow_request(PROMPT, None, FLOAT32), [(ids, shifted)])
    assert output.finished is not None
    assert output.finished.verdict is Verdict.DIFFERENT
    unknown = follow(scheduler, engine.follow_request(PROMPT, None, FLOAT32), [(ids, [GivenLogprobs()] * len(ids))])
    assert unknown.finished is not None
    assert unknown.finished.verdict is Verdict.UNKNOWN


def test_refusals(engine: Engine) -> None:
    def refused(match: str, **fields: Any) -> None:
        with pytest.raises(InvalidRequestError, match=match):
            engine.follow_request(PROMPT, None, replace(FLOAT32, **fields))

    refused("completion_ids: .* max_new_tokens allows 2", ids=(1, 2, 3), max_new_tokens=2)
    refused(r"completion_ids\[0\]: 1000000000 is not a token id", ids=(10**9,))
    refused("max_new_tokens", max_new_tokens=10**9)
    with pytest.raises(InvalidRequestError, match="spans"):
        engine.follow_request(PROMPT, AttributionSettings(tokens=TokenSelection((), ((0, 1),))))
    request = engine.follow_request(PROMPT, AttributionSettings(GradEllm()), replace(FLOAT32, max_new_tokens=3))
    with pytest.raises(InvalidRequestError, match=r"append.ids: 4 tokens in all; at most 3"):
        request.append([1, 2, 3, 4], [])
    request.finish()
    with pytest.raises(InvalidRequestError, match="comes after finish"):
        request.append([1], [])
    request.finish()
    assert request.is_closed
