"""When tokens and their scores are emitted, and how many tokens a pass explains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from engine.core.scheduler.conftest import Passes
from gradellm_engine import (
    Attribution,
    Delivery,
    Engine,
    Finished,
    Sampling,
    Step,
)
from gradellm_engine.core import scheduler as scheduling
from support.scheduler_harness import (
    PREFIX,
    PROMPT,
    SAMPLED,
    RequestOutput,
    chunked,
    run,
    scheduler_of,
)

CHUNK_SIZES = [1, 3, 16]


@pytest.mark.parametrize("size", [1, 3, 7, 16, None])
@pytest.mark.parametrize("stop", [(), ("never met",)], ids=["", "stop"])
def test_scores_come_at_most_a_chunk_late_and_before_the_end(
    load: Callable[..., Engine], size: int | None, stop: tuple[str, ...]
) -> None:
    engine = load("mistral")
    settings = replace(PREFIX, delivery=Delivery.CHUNKED, chunk_size=size)
    sampling = replace(SAMPLED, max_new_tokens=40, stop=stop)
    requests = [engine.generation_request(PROMPT, replace(sampling, seed=seed), settings) for seed in range(3)]
    num_held = max(map(len, stop), default=0)  # text that may begin a stop text is outputs with what follows
    for output in run(scheduler_of(engine, max_running=3, num_tokens=400), requests):
        assert_in_time(output, (size or 16) + num_held)
        assert len(output.attributions) == 40


def assert_in_time(output: RequestOutput, size: int) -> None:
    """Scores are emitted in order, after their token, less than `size` tokens late, and before the end."""
    num_tokens = num_scored = 0
    for event in output.events[:-1]:
        assert not isinstance(event, Finished)
        if isinstance(event, Step):
            assert event.index == num_tokens
            num_tokens += 1
        if isinstance(event, Attribution):
            assert event.token_index == num_scored
            assert num_tokens - size <= num_scored < num_tokens
            num_scored += 1
    finished = output.events[-1]
    assert isinstance(finished, Finished)
    assert num_scored == num_tokens == finished.num_attributed_tokens == finished.num_completion_tokens


def test_per_token_scores_come_before_the_next_token(load: Callable[..., Engine]) -> None:
    engine = load("llama")
    requests = [engine.generation_request(PROMPT, replace(SAMPLED, seed=seed), PREFIX) for seed in range(3)]
    for output in run(scheduler_of(engine, max_running=3, num_tokens=300), requests):
        assert_in_time(output, 1)


def test_tokens_leave_before_their_scores_are_computed(load: Callable[..., Engine]) -> None:
    engine = load("llama")
    scheduler = scheduler_of(engine, max_running=1, num_tokens=100)
    request = engine.generation_request("a", SAMPLED, PREFIX)
    scheduler.submit(request)
    request.take_events()  # Started
    seen: list[list[type]] = []
    while not request.is_closed:
        seen += [[type(event) for event in request.take_events()] for _ in scheduler.step()]
    outputs = [kinds for kinds in seen if Step in kinds or Attribution in kinds]
    assert [kinds[0] for kinds in outputs] == [Step, Attribution] * 10
    assert [len(kinds) for kinds in outputs] == [1] * 19 + [2]
    assert outputs[-1][-1] is Finished


@pytest.mark.parametrize("size", CHUNK_SIZES)
def test_generated_tokens_are_explained_in_chunks_and_decoded_plainly(
    load: Callable[..., Engine], passes: Passes, size: int
) -> None:
    engine = load("mistral")
    sampling = Sampling(max_new_tokens=33)
    (output,) = run(
        scheduler_of(engine, max_running=1, num_tokens=100), [engine.generation_request("ab", sampling, chunked(size))]
    )
    num_tokens = len(output.ids)
    assert num_tokens > 16
    assert len(passes.of("step")) == num_tokens
    lengths = [len(chunk.ids) for (chunk,) in passes.of("explained_pass")]
    assert lengths == [size] * (num_tokens // size) + [num_tokens % size] * (num_tokens % size > 0)
    assert not any(chunk.is_new for (chunk,) in passes.of("explained_pass"))


def test_completions_are_explained_in_chunks(load: Callable[..., Engine], passes: Passes) -> None:
    engine = load("mistral")
    ids = list(range(70, 90))
    for size, expected in ((1, [1] * 20), (3, [3] * 6 + [2]), (16, [16, 4]), (None, [16, 4])):
        scheduler = scheduler_of(engine, max_running=1, num_tokens=100)
        passes.recorded.clear()
        (output,) = run(scheduler, [engine.attribution_request(PROMPT, ids, replace(PREFIX, chunk_size=size))])
        assert [len(chunks[0].ids) for chunks in passes.of("explained_pass")] == expected
        assert passes.of("step") == []
        assert output.ids == ids


def test_an_explain_pass_is_bounded_and_no_request_starves(load: Callable[..., Engine], passes: Passes) -> None:
    """Where more tokens are due than a pass takes, requests take turns; a chunk larger than a pass has its own."""
    engine = load("llama")
    sizes = [100, 30, 30, 30, 16, 16]
    requests = [
        engine.attribution_request("ab", list(range(60, 160)), replace(PREFIX, chunk_size=size)) for size in sizes
    ]
    run(scheduler_of(engine, max_running=6, num_tokens=700), requests)
    num_tokens = []
    for chunks in passes.of("explained_pass"):
        lengths = [len(chunk.ids) for chunk in chunks]
        assert sum(lengths) <= scheduling.MAX_EXPLAINED_TOKENS["cpu"] or len(lengths) == 1
        num_tokens.append(sum(lengths))
    assert sum(num_tokens) == 600
    assert 100 in num_tokens
    served = [{id(chunk.slot) for chunk in chunks} for chunks in passes.of("explained_pass")]
    turns = {slot: [i for i, slots in enumerate(served) if slot in slots] for slot in set().union(*served)}
    assert len(turns) == 6
    assert max(b - a for passes_of_slot in turns.values() for a, b in pairwise(passes_of_slot)) <= 4
