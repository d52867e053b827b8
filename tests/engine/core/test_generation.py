"""A `GenerationIterator`: its steps and its result, resumed, interleaved with other requests, and closed early."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.core.generation_helpers import (
    GREEDY,
    PREFIX,
    PROMPT,
    SAMPLED,
    clear_kv_cache,
    delivered,
    deliveries,
    fields,
    reason,
    row,
    same,
)
from gradellm_engine import (
    AttributionSettings,
    BusyError,
    Engine,
    FinishReason,
    GenerationIterator,
    GradEllm,
    Resolution,
    Rotary,
    Sampling,
    Sources,
    Step,
)
from support.oracle import relative_error

ModelPath = Callable[[str], Path]


@pytest.fixture(scope="module")
def demo(model_path: ModelPath) -> Engine:
    return Engine.load(str(model_path("demo")))


@deliveries
def test_steps_and_the_result_agree(engine: Engine, chunk_size: int | None) -> None:
    clear_kv_cache(engine)
    generation = engine.generate(PROMPT, replace(SAMPLED, num_alternatives=3), delivered(PREFIX, chunk_size))
    steps = list(generation)
    finished = generation.finished
    assert finished is not None
    assert finished.text == "".join(step.text for step in steps)
    assert [finished.text[s.start : s.end] for s in steps] == [s.text for s in steps]
    assert [s.index for s in steps] == list(range(12))
    assert finished.num_completion_tokens == finished.num_attributed_tokens == 12
    assert finished.num_prompt_tokens == len(generation.started.prompt.tokens)
    assert finished.num_reused_tokens == 0
    assert finished.queue_seconds >= 0
    assert finished.prefill_seconds > 0
    assert finished.decode_seconds > 0
    assert finished.attribution_seconds > 0 or chunk_size == 16  # see below
    for step in steps:
        best = step.alternatives
        assert len(best) == 3
        assert best[0].logprob >= best[1].logprob >= best[2].logprob
        assert step.logprob <= best[0].logprob
        assert all(a.logprob == step.logprob for a in best if a.id == step.id)


@pytest.mark.parametrize("kind", ["plain", "chunked", "completion"])
def test_the_last_pass_counts_in_the_times(engine: Engine, kind: str) -> None:
    chunk = delivered(AttributionSettings(), 16)
    generation = {
        "plain": lambda: engine.generate(PROMPT, replace(GREEDY, max_new_tokens=1)),
        "chunked": lambda: engine.generate(PROMPT, GREEDY, chunk),
        "completion": lambda: engine.attribute(PROMPT, "a fox", chunk),
    }[kind]()
    list(generation)
    assert generation.finished is not None
    assert generation.finished.decode_seconds > 0
    assert kind == "plain" or generation.finished.attribution_seconds > 0


def test_reused_prompt_tokens_are_reported(engine: Engine) -> None:
    clear_kv_cache(engine)
    for num_reused in (0, 52):
        generation = engine.generate(PROMPT, GREEDY, PREFIX)
        list(generation)
        assert generation.finished is not None
        assert generation.finished.num_reused_tokens == num_reused
        assert (generation.finished.prefill_seconds > 0) == (num_reused == 0)


def test_the_chosen_seed_is_reported(engine: Engine) -> None:
    sampling = Sampling(max_new_tokens=6, temperature=1.5)
    first = engine.generate(PROMPT, sampling)
    seed = first.started.sampling.seed
    assert seed is not None
    again = engine.generate(PROMPT, replace(sampling, seed=seed))
    assert fields(list(first)) == fields(list(again))
    assert engine.generate(PROMPT, sampling).started.sampling.seed != seed


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    ("rotary", "chunk_size"),
    [(Rotary.ROTATED, None), (Rotary.ROTATED, 3), (Rotary.UNROTATED, 1), (Rotary.UNROTATED, 16)],
)
def test_a_generation_is_resumed_after_every_token(
    engine: Engine, sampling: Sampling, rotary: Rotary, chunk_size: int | None
) -> None:
    sampling = replace(sampling, max_new_tokens=6)
    settings = AttributionSettings(GradEllm(rotary=rotary), sources=Sources.PREFIX, resolution=Resolution.WORD)
    settings = delivered(settings, chunk_size)
    whole_generation = engine.generate(PROMPT, sampling, settings)
    generated = list(whole_generation)
    ids = [step.id for step in generated]
    for split in range(len(ids) + 1):
        for first in {0, split // 2, split}:
            generation = engine.generate(PROMPT, sampling, settings, forced_ids=ids[:split], first_attribution=first)
            resumed = list(generation)
            assert fields(resumed) == fields(generated[first:])
            assert [s.is_new for s in resumed] == [s.index >= split for s in resumed]
            for a, b in zip(resumed, generated[first:], strict=True):
                assert relative_error(row(a), row(b).double()) <= 1e-5
                assert math.isclose(a.logprob, b.logprob, rel_tol=1e-4)
            assert generation.finished is not None
            assert whole_generation.finished is not None
            assert generation.finished.text == whole_generation.finished.text
            assert generation.finished.reason is whole_generation.finished.reason


def test_resuming_without_attribution_reports_new_tokens_only(engine: Engine) -> None:
    ids = [step.id for step in engine.generate(PROMPT, GREEDY)]
    resumed = list(engine.generate(PROMPT, GREEDY, forced_ids=ids[:5], first_attribution=0))
    assert [step.id for step in resumed] == ids[5:]


@pytest.mark.parametrize("as_text", [False, True])
@deliveries
def test_attributing_a_completion_repeats_its_generation(demo: Engine, as_text: bool, chunk_size: int | None) -> None:
    generation = demo.generate(PROMPT, Sampling(max_new_tokens=12), PREFIX)
    steps = list(generation)
    assert generation.finished is not None
    ids_or_text: Any = generation.finished.text if as_text else [s.id for s in steps]
    again = demo.attribute(PROMPT, ids_or_text, replace(PREFIX, chunk_size=chunk_size))
    repeated = list(again)
    assert fields(repeated) == fields(steps)
    for a, b in zip(repeated, steps, strict=True):
        assert relative_error(row(a), row(b).double()) <= 1e-5
        assert math.isclose(a.logprob, b.logprob, rel_tol=1e-4, abs_tol=1e-5)
        assert a.is_new
    assert reason(again) is FinishReason.END_OF_COMPLETION


@deliveries
def test_end_of_text_tokens(engine: Engine, chunk_size: int | None) -> None:
    ids = [step.id for step in engine.generate(PROMPT, SAMPLED)]
    end = next(i for i, token_id in enumerate(ids) if i >= 3 and ids.count(token_id) == 1)
    ending = Engine(replace(engine.model, end_ids=frozenset({ids[end]})))
    generation = ending.generate(PROMPT, SAMPLED, delivered(PREFIX, chunk_size))
    assert [step.id for step in generation] == ids[: end + 1]
    assert reason(generation) is FinishReason.END_OF_TEXT
    # A given completion, and forced tokens, continue after an end-of-text token.
    assert len(list(ending.attribute(PROMPT, ids))) == len(ids)
    after_end = ending.generate(PROMPT, SAMPLED, forced_ids=ids[: end + 3])
    assert [step.id for step in after_end] == ids[end + 3 :]
    # Forced tokens that end with it end the completion.
    over = ending.generate(PROMPT, SAMPLED, forced_ids=ids[: end + 1])
    assert list(over) == []
    assert reason(over) is FinishReason.END_OF_TEXT


def test_the_model_s_own_end_is_a_special_token_without_text(engine: Engine) -> None:
    generation = engine.generate(PROMPT, GREEDY, forced_ids=[64, 257], attribution=PREFIX, first_attribution=0)
    a, end = list(generation)
    assert (a.text, a.special, end.text, end.special) == ("a", False, "", True)
    assert reason(generation) is FinishReason.END_OF_TEXT


def test_max_new_tokens(engine: Engine) -> None:
    for count in (1, 3):
        generation = engine.generate(PROMPT, replace(GREEDY, max_new_tokens=count))
        assert len(list(generation)) == count
        assert reason(generation) is FinishReason.MAX_NEW_TOKENS


@pytest.mark.parametrize("when", [0, 1, 4])
@deliveries
def test_closing_early_ends_it(engine: Engine, when: int, chunk_size: int | None) -> None:
    pool = engine.model.runner.pool
    generation = engine.generate(PROMPT, GREEDY, delivered(PREFIX, chunk_size))
    for _ in range(when):
        generation.advance()
    generation.close()
    generation.close()
    assert generation.advance() == []
    assert list(generation) == []
    assert generation.finished is None
    assert pool.num_free_tokens == pool.num_tokens
    assert len(list(engine.generate(PROMPT, GREEDY, PREFIX))) == 12


def test_a_generation_without_references_is_closed(engine: Engine) -> None:
    pool = engine.model.runner.pool
    generation = engine.generate(PROMPT, GREEDY, PREFIX)
    generation.advance()
    assert pool.num_free_tokens < pool.num_tokens
    del generation
    assert pool.num_free_tokens == pool.num_tokens
    assert engine.scheduler.running == []


def test_generations_beyond_max_running_are_busy_and_run_later(model_path: ModelPath) -> None:
    engine = Engine.load(str(model_path("llama")), max_running=2)
    first, second, third = (engine.generate(PROMPT, GREEDY, PREFIX) for _ in range(3))
    steps = first.advance()
    second.advance()
    with pytest.raises(BusyError):
        third.advance()
    steps += first
    assert fields(list(third)) == fields(steps)
    second.close()


def test_closing_within_a_loop_ends_the_loop(engine: Engine) -> None:
    generation = engine.generate(PROMPT, GREEDY)
    seen = []
    for step in generation:
        seen.append(step.index)
        if step.index == 2:
            generation.close()
    assert seen == [0, 1, 2]


def test_generations_do_not_influence_each_other(engine: Engine) -> None:
    def requests() -> list[GenerationIterator]:
        return [
            engine.generate(PROMPT, SAMPLED, PREFIX),
            engine.generate("Another, longer prompt.", GREEDY, AttributionSettings(GradEllm.preset("grad_eclip"))),
            engine.generate(PROMPT, GREEDY),
            engine.attribute("Yes", "no, but yes", AttributionSettings(GradEllm.preset("knockout"))),
            engine.generate("Third", SAMPLED, delivered(PREFIX, 3)),
        ]

    alone = [list(generation) for generation in requests()]
    together: list[list[Step]] = [[] for _ in alone]
    open_ones = requests()
    while any(generation.finished is None for generation in open_ones):
        for steps, generation in zip(together, open_ones, strict=True):
            steps += generation.advance()
    for a, b in zip(alone, together, strict=True):
        assert fields(a) == fields(b)
        # Up to rounding: together, some find the prefixes that others have left.
        assert [s.logprob for s in a] == pytest.approx([s.logprob for s in b], rel=1e-5)
        assert all(same(row(x), row(y)) for x, y in zip(a, b, strict=True) if x.attribution)
