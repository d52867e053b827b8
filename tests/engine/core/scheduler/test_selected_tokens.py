"""Requests of which some tokens are explained: rows as without the selection, and no pass for the other tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from engine.core.scheduler.conftest import Passes
from gradellm_engine import (
    Attribution,
    AttributionSettings,
    Delivery,
    Engine,
    GradEllm,
    InvalidRequestError,
    Request,
    Resolution,
    Sampling,
    Sources,
    Step,
    TokenSelection,
)
from support.oracle import relative_error
from support.scheduler_harness import PROMPT, RequestOutput, chunked, run, run_alone, scheduler_of

Load = Callable[..., Engine]
EXACT = 1e-6
COUNT = 14
SAMPLED = Sampling(max_new_tokens=COUNT, temperature=1.1, seed=3)
SETTINGS = AttributionSettings(sources=Sources.PREFIX)
SELECTIONS = [(0,), (COUNT - 1,), (2, 3, 4, 9), tuple(range(COUNT))]
deliveries = pytest.mark.parametrize("chunk_size", [None, 1, 3, 16], ids=["per_token", "by 1", "by 3", "by 16"])


def of(indexes: Sequence[int], settings: AttributionSettings = SETTINGS) -> AttributionSettings:
    return replace(settings, tokens=TokenSelection(tuple(indexes)))


def delivered(settings: AttributionSettings, chunk_size: int | None) -> AttributionSettings:
    return settings if chunk_size is None else chunked(chunk_size, settings)


def assert_rows_of(some: RequestOutput, every: RequestOutput, indexes: Sequence[int]) -> None:
    """The tokens are the same, and the selected ones have the same rows."""
    assert some.error is None
    assert [(s.id, s.text, s.start, s.source_index, s.word) for s in some.steps] == [
        (s.id, s.text, s.start, s.source_index, s.word) for s in every.steps
    ]
    assert sorted(some.attributions) == sorted(indexes)
    for index in indexes:
        row, expected = some.attributions[index], every.attributions[index]
        assert (row.target_token_id, row.contrast_token_id) == (expected.target_token_id, expected.contrast_token_id)
        assert relative_error(row.scores, expected.scores.double()) <= EXACT
    assert some.finished is not None
    assert some.finished.num_attributed_tokens == len(indexes)


@pytest.fixture
def engine(load: Load) -> Engine:
    return load("llama", "float64")


def explained_tokens(passes: Passes) -> int:
    """Tokens that backward passes explained."""
    return sum(
        len(chunk.ids) for chunks in passes.of("explained_pass") for chunk in chunks if chunk.explain is not None
    )


@deliveries
@pytest.mark.parametrize("indexes", SELECTIONS)
def test_a_generated_token_that_is_not_selected_is_a_plain_decode_step(
    engine: Engine, passes: Passes, chunk_size: int | None, indexes: tuple[int, ...]
) -> None:
    settings = delivered(SETTINGS, chunk_size)
    every = run_alone(engine, engine.generation_request(PROMPT, SAMPLED, settings))
    passes.recorded.clear()
    some = run_alone(engine, engine.generation_request(PROMPT, SAMPLED, of(indexes, settings)))
    assert_rows_of(some, every, indexes)
    assert explained_tokens(passes) == len(indexes)
    assert all(chunk.explain is not None for chunks in passes.of("explained_pass") for chunk in chunks)
    new = [chunk for chunks in passes.of("step") for chunk in chunks]
    first = COUNT if chunk_size is not None else COUNT - len(indexes) + (0 in indexes)  # the first is in a mixed pass
    assert len(new) == first


@deliveries
@pytest.mark.parametrize("indexes", SELECTIONS)
def test_a_completion_s_other_tokens_are_read_without_a_backward_pass(
    engine: Engine, passes: Passes, chunk_size: int | None, indexes: tuple[int, ...]
) -> None:
    settings, ids = delivered(SETTINGS, chunk_size), [random.Random(7).randrange(256) for _ in range(COUNT)]
    every = run_alone(engine, engine.attribution_request(PROMPT, ids, settings))
    passes.recorded.clear()
    some = run_alone(engine, engine.attribution_request(PROMPT, ids, of(indexes, settings)))
    assert_rows_of(some, every, indexes)
    assert explained_tokens(passes) == len(indexes)
    assert len(passes.of("explained_pass")) <= len(indexes)


@pytest.mark.parametrize("resolution", Resolution)
@pytest.mark.parametrize("top_k", [None, 3])
@deliveries
def test_columns_are_those_of_all_tokens(
    engine: Engine, resolution: Resolution, top_k: int | None, chunk_size: int | None
) -> None:
    settings = delivered(replace(SETTINGS, resolution=resolution, top_k_sources=top_k), chunk_size)
    every = run_alone(engine, engine.generation_request(PROMPT, SAMPLED, settings))
    some = run_alone(engine, engine.generation_request(PROMPT, SAMPLED, of((1, 5, 6), settings)))
    assert_rows_of(some, every, (1, 5, 6))
    for index in (1, 5, 6):
        chosen, expected = some.attributions[index].source_indexes, every.attributions[index].source_indexes
        assert (chosen is None) == (expected is None)
        assert (chosen is None) == (top_k is None or resolution is Resolution.SEGMENT)  # which has few sources
        assert chosen is None or expected is None or chosen.tolist() == expected.tolist()


@pytest.mark.parametrize("size", [1, 4, 16])
def test_a_late_row_is_at_most_a_chunk_late(engine: Engine, size: int) -> None:
    """Even if fewer tokens than a chunk are selected."""
    sampling = replace(SAMPLED, max_new_tokens=40)
    request = engine.generation_request(PROMPT, sampling, of((0, 3, 20, 39), chunked(size, SETTINGS)))
    output = run_alone(engine, request)
    seen, lags = -1, {}
    for event in output.events:
        if isinstance(event, Step):
            seen = event.index
        elif isinstance(event, Attribution):
            lags[event.token_index] = seen - event.token_index
    assert sorted(lags) == [0, 3, 20]  # the completion ends before token 39
    assert max(lags.values()) <= size - 1


@hypothesis_settings(max_examples=25)
@given(
    indexes=st.sets(st.integers(0, COUNT - 1), min_size=1),
    chunk_size=st.sampled_from([None, 1, 2, 5, 16]),
    is_given=st.booleans(),
)
def test_any_selection(load: Load, indexes: set[int], chunk_size: int | None, *, is_given: bool) -> None:
    engine = load("llama", "float64")
    settings = delivered(SETTINGS, chunk_size)
    ids = [70 + i for i in range(COUNT)]

    def request(options: AttributionSettings) -> Request:
        if is_given:
            return engine.attribution_request(PROMPT, ids, options)
        return engine.generation_request(PROMPT, SAMPLED, options)

    every, some = (run_alone(engine, request(options)) for options in (settings, of(sorted(indexes), settings)))
    assert_rows_of(some, every, sorted(indexes))


@deliveries
@pytest.mark.parametrize(("num_forced", "first"), [(6, None), (6, 0), (6, 3), (9, 9)])
def test_a_resumed_completion_has_rows_from_first_attribution_on(
    engine: Engine, passes: Passes, chunk_size: int | None, num_forced: int, first: int | None
) -> None:
    indexes, settings = (1, 4, 5, 8, 12), delivered(SETTINGS, chunk_size)
    every = run_alone(engine, engine.generation_request(PROMPT, SAMPLED, settings))
    passes.recorded.clear()
    request = engine.generation_request(
        PROMPT, SAMPLED, of(indexes, settings), forced_ids=every.ids[:num_forced], first_attribution=first
    )
    resumed = run_alone(engine, request)
    wanted = [index for index in indexes if index >= (num_forced if first is None else first)]
    assert [step.id for step in resumed.steps if step.is_new] == every.ids[num_forced:]
    assert sorted(resumed.attributions) == wanted
    for index in wanted:
        expected = every.attributions[index].scores
        assert relative_error(resumed.attributions[index].scores, expected.double()) <= EXACT
    assert explained_tokens(passes) == len(wanted)
    if first == 0:  # token 0 is prefilled: the first that is computed is the first that is selected
        assert resumed.steps[0].index == 1


def test_requests_with_and_without_a_selection_share_passes(load: Load) -> None:
    engine = load("mistral")
    ids = [70 + i for i in range(COUNT)]
    requests: list[Callable[[], Request]] = [
        lambda: engine.generation_request(PROMPT, SAMPLED, of((1, 2, 7))),
        lambda: engine.generation_request(PROMPT, SAMPLED, of((0, 13), chunked(4, SETTINGS))),
        lambda: engine.generation_request(PROMPT, SAMPLED),
        lambda: engine.generation_request(PROMPT, SAMPLED, SETTINGS),
        lambda: engine.attribution_request(PROMPT, ids, of((3, 9))),
        lambda: engine.attribution_request(PROMPT, ids, SETTINGS),
        lambda: engine.attribution_request(PROMPT, ids, of(range(4, 12), chunked(4, SETTINGS))),
    ]
    alone = [run_alone(engine, make()) for make in requests]
    together = run(scheduler_of(engine, max_running=7, num_tokens=900), [make() for make in requests])
    for one, other in zip(alone, together, strict=True):
        assert other.error is None
        assert other.ids == one.ids
        assert sorted(other.attributions) == sorted(one.attributions)
        for index, row in other.attributions.items():
            assert relative_error(row.scores, one.attributions[index].scores.double()) <= 1e-5


def test_launch_graphs_replay_scattered_tokens(load: Load) -> None:
    engine = load("llama", "float32")
    settings = chunked(4, SETTINGS)
    every = run_alone(engine, engine.generation_request(PROMPT, replace(SAMPLED, max_new_tokens=40), settings))
    indexes = (0, 2, 5, 6, 9, 10, 11, 13, 15, 18, 20)
    engine.model.runner.use_graphs()
    request = engine.generation_request(PROMPT, replace(SAMPLED, max_new_tokens=40), of(indexes, settings))
    some = run_alone(engine, request)
    assert some.ids == every.ids
    for index in indexes:
        assert relative_error(some.attributions[index].scores, every.attributions[index].scores.double()) <= 1e-5


@pytest.mark.parametrize(
    ("selection", "field", "message"),
    [
        (TokenSelection((COUNT,)), "indexes", "beyond max_new_tokens"),
        (TokenSelection(spans=((0, 1),)), "spans", "use Attribute"),
        (TokenSelection(tuple(range(10**4))), "indexes", "the limit of a completion is"),
    ],
)
def test_tokens_that_cannot_be_generated_are_refused(
    engine: Engine, selection: TokenSelection, field: str, message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        engine.generation_request(PROMPT, SAMPLED, replace(SETTINGS, tokens=selection))
    assert caught.value.field == f"attribution.tokens.{field}"


def test_spans_of_a_completion_s_text_are_its_tokens(engine: Engine) -> None:
    """One token a byte: é has two."""
    request = engine.attribution_request(PROMPT, "caféx", replace(SETTINGS, tokens=TokenSelection(spans=((3, 4),))))
    output = run_alone(engine, request)
    assert sorted(output.attributions) == [3, 4]
    assert output.finished is not None
    assert output.finished.num_attributed_tokens == 2


def test_an_engine_without_a_server_yields_every_step_in_order(load: Load) -> None:
    engine = load("llama")
    for settings in (of((2, 5)), of((2, 5), chunked(16, SETTINGS)), of((2, 5), AttributionSettings(GradEllm()))):
        steps = list(engine.generate(PROMPT, SAMPLED, settings))
        assert [step.index for step in steps] == list(range(COUNT))
        assert [step.index for step in steps if step.attribution is not None] == [2, 5]
    assert Delivery.CHUNKED is of((2,), chunked(16, SETTINGS)).delivery
