"""Sampling parameters in generations: what each changes, where completions end, and that they are resumed anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from gradellm_engine import AttributionSettings, Engine, FinishReason, InvalidRequestError, Sampling, Step

PROMPT = "Once upon a time, a small red fox did not like rain."
GREEDY = Sampling(max_new_tokens=16)
SAMPLED = Sampling(max_new_tokens=16, temperature=1.2, top_k=80, top_p=0.95, seed=5)


def ids_of(steps: Sequence[Step]) -> list[int]:
    return [step.id for step in steps]


def generated(engine: Engine, sampling: Sampling, **keywords: Any) -> tuple[list[int], FinishReason, str]:
    generation = engine.generate(PROMPT, sampling, **keywords)
    ids = ids_of(list(generation))
    assert generation.finished is not None
    return ids, generation.finished.reason, generation.finished.text


def ending(engine: Engine, *end_ids: int) -> Engine:
    """The same model with other end tokens."""
    return Engine(replace(engine.model, end_ids=frozenset(end_ids)))


EVERYTHING: dict[str, Any] = {
    "repetition_penalty": 1.4,
    "frequency_penalty": 0.6,
    "presence_penalty": 0.4,
    "logit_bias": ((65, 1.5), (70, -2.0)),
    "min_new_tokens": 12,
    "min_p": 0.01,
    "stop_token_ids": (66, 67),
}


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_generation_is_resumed_after_every_token_by_another_engine(
    engine: Engine, sampling: Sampling, other_engine: Engine
) -> None:
    sampling = replace(sampling, **EVERYTHING)
    whole = generated(engine, sampling)
    assert whole[0] != generated(engine, replace(sampling, repetition_penalty=1.0, frequency_penalty=0.0))[0]
    for split in range(len(whole[0]) + 1):
        ids, reason, text = generated(other_engine, sampling, forced_ids=whole[0][:split])
        assert (whole[0][:split] + ids, reason, text) == whole


@pytest.fixture(scope="module")
def other_engine(engine: Engine) -> Engine:
    """The same model behind another KV cache and scheduler."""
    return Engine(engine.model)


def test_a_bias_forces_and_forbids_tokens(engine: Engine) -> None:
    assert set(generated(engine, replace(GREEDY, logit_bias=((65, 100.0),)))[0]) == {65}
    plain = generated(engine, GREEDY)[0]
    without = generated(engine, replace(GREEDY, logit_bias=tuple((i, -100.0) for i in set(plain))))[0]
    assert not {*plain} & {*without}


def test_a_repetition_penalty_spreads_over_tokens(engine: Engine) -> None:
    new = sorted(set(range(261)) - {*engine.tokenize(PROMPT).ids})[:16]
    sampling = replace(GREEDY, logit_bias=tuple((token_id, 50.0) for token_id in new))
    assert len(set(generated(engine, sampling)[0])) < 16
    assert sorted(generated(engine, replace(sampling, repetition_penalty=2.0))[0]) == new


def test_log_probabilities_are_the_model_s_own(engine: Engine) -> None:
    steps = list(engine.generate(PROMPT, replace(SAMPLED, **EVERYTHING, num_alternatives=3)))
    repeated = list(engine.attribute(PROMPT, ids_of(steps), num_alternatives=3))
    for step, again in zip(steps, repeated, strict=True):
        assert abs(step.logprob - again.logprob) < 1e-4
        assert [a.id for a in step.alternatives] == [a.id for a in again.alternatives]


def test_min_new_tokens_keeps_end_tokens_away(engine: Engine) -> None:
    ids = generated(engine, SAMPLED)[0]
    model = ending(engine, ids[2])
    assert generated(model, SAMPLED)[:2] == (ids[:3], FinishReason.END_OF_TEXT)
    longer = generated(model, replace(SAMPLED, min_new_tokens=9))[0]
    assert len(longer) > 9
    assert ids[2] not in longer[:9]


def test_min_new_tokens_lets_stop_texts_pass(engine: Engine) -> None:
    a = engine.tokenize("a").ids[-1]
    sampling = replace(GREEDY, logit_bias=((a, 100.0),), stop=("aa",))
    assert generated(engine, sampling) == ([a, a], FinishReason.STOP_TEXT, "")
    assert generated(engine, replace(sampling, min_new_tokens=5)) == ([a] * 6, FinishReason.STOP_TEXT, "aaaa")


def test_ignored_end_tokens_end_nothing(engine: Engine) -> None:
    ids = generated(engine, SAMPLED)[0]
    model = ending(engine, ids[3])
    assert generated(model, replace(SAMPLED, ignore_eos=True))[:2] == (ids, FinishReason.MAX_NEW_TOKENS)
    both = replace(SAMPLED, ignore_eos=True, stop_token_ids=(ids[3],))
    first = ids.index(ids[3]) + 1
    assert generated(model, both)[:2] == (ids[:first], FinishReason.STOP_TOKEN)


def test_a_stop_token_ends_the_completion_and_has_no_text(engine: Engine) -> None:
    sampling = replace(GREEDY, logit_bias=((65, 100.0),), presence_penalty=0.0)
    assert generated(engine, replace(sampling, stop_token_ids=(65,))) == ([65], FinishReason.STOP_TOKEN, "")
    longer = replace(sampling, stop_token_ids=(65,), min_new_tokens=2)
    ids, reason, text = generated(engine, longer)
    assert (ids[2:], reason) == ([65], FinishReason.STOP_TOKEN)
    assert text == generated(engine, replace(longer, max_new_tokens=2))[2]


def test_special_tokens_have_text_where_they_are_not_skipped(engine: Engine) -> None:
    special = sorted(engine.model.encoder.special_ids)
    shown = engine.model.encoder.decode_alone(special[-1])
    sampling = Sampling(max_new_tokens=3, logit_bias=((special[-1], 100.0),), ignore_eos=True)
    assert generated(engine, sampling) == ([special[-1]] * 3, FinishReason.MAX_NEW_TOKENS, "")
    steps = list(engine.generate(PROMPT, replace(sampling, skip_special_tokens=False)))
    assert [(step.text, step.special) for step in steps] == [(shown, True)] * 3
    assert generated(engine, replace(sampling, skip_special_tokens=False))[2] == 3 * shown


def test_the_end_token_has_no_text_even_so(engine: Engine) -> None:
    end = max(engine.model.end_ids)
    sampling = Sampling(max_new_tokens=3, logit_bias=((end, 100.0),), skip_special_tokens=False)
    assert generated(engine, sampling) == ([end], FinishReason.END_OF_TEXT, "")


def test_explained_tokens_are_those_of_the_settings(engine: Engine) -> None:
    sampling = replace(SAMPLED, **EVERYTHING)
    steps = list(engine.generate(PROMPT, sampling, AttributionSettings()))
    assert ids_of(steps) == generated(engine, sampling)[0]
    assert all(step.attribution is not None for step in steps)


@pytest.mark.parametrize(
    ("field", "keywords"),
    [
        ("stop_token_ids[1]", {"stop_token_ids": (5, 10**6)}),
        ("stop_token_ids[0]", {"stop_token_ids": (-1,)}),
        ("logit_bias[261]", {"logit_bias": ((5, 1.0), (261, 1.0))}),
        ("logit_bias[-3]", {"logit_bias": ((-3, 1.0),)}),
        ("min_new_tokens", {"min_new_tokens": 17}),
    ],
)
def test_what_the_model_does_not_have_is_refused_by_name(engine: Engine, field: str, keywords: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        engine.generate(PROMPT, replace(GREEDY, **keywords))
    assert caught.value.field == field
