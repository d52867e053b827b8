"""Generations under a grammar: texts that it describes, explained as ever, resumed and repeated on other ranks."""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Iterator
from dataclasses import replace

import jsonschema
import pytest

from engine.core.generation_helpers import PREFIX, PROMPT, clear_kv_cache
from gradellm_engine import AttributionSettings, Engine, FinishReason, Sampling, Step, StructuredOutput
from gradellm_engine.core.request_spec import RequestCall
from support.scheduler_harness import run, scheduler_of

SAMPLED = Sampling(max_new_tokens=120, temperature=1.2, seed=5)
GREEDY = Sampling(max_new_tokens=120)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
PERSON = StructuredOutput(json_schema=json.dumps(SCHEMA))


@pytest.fixture(autouse=True)
def _whole_kv_cache(engine: Engine) -> Iterator[None]:
    yield
    clear_kv_cache(engine)  # for the tests after it


def steps_of(engine: Engine, sampling: Sampling, settings: StructuredOutput | None, **more: object) -> list[Step]:
    clear_kv_cache(engine)
    return list(engine.generate(PROMPT, sampling, structured_output=settings, **more))  # type: ignore[arg-type]


def text_of(steps: list[Step]) -> str:
    return "".join(step.text for step in steps)


@pytest.mark.parametrize("seed", range(5))
def test_an_answer_is_what_the_schema_describes(engine: Engine, seed: int) -> None:
    iterator = engine.generate(PROMPT, replace(SAMPLED, seed=seed), structured_output=PERSON)
    text = text_of(list(iterator))
    jsonschema.validate(json.loads(text), SCHEMA)
    assert iterator.finished is not None
    assert iterator.finished.reason is FinishReason.END_OF_TEXT
    assert iterator.started.structured_output == PERSON


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        (StructuredOutput(regex="[ab]{3}c{1,4}"), "[ab]{3}c{1,4}"),
        (StructuredOutput(choice=("left", "right", "rights")), "left|rights?"),
        (StructuredOutput(grammar='start: "x" ("y" | "z") /[0-9]{2}/'), "x[yz][0-9]{2}"),
    ],
)
def test_an_answer_matches_regex_choice_and_grammar(
    engine: Engine, sampling: Sampling, settings: StructuredOutput, pattern: str
) -> None:
    assert re.fullmatch(pattern, text_of(steps_of(engine, sampling, settings)))


def test_tokens_are_those_of_the_models_distribution_over_what_is_allowed(engine: Engine) -> None:
    """The greedy choice is the likeliest allowed token, by log-probabilities that are the model's own."""
    steps = steps_of(engine, GREEDY, StructuredOutput(regex="[a-z]{4}"))
    text = text_of(steps)
    for index in range(4):
        prefix = text[:index]
        scores = {}
        for letter in "abcdefghijklmnopqrstuvwxyz":
            clear_kv_cache(engine)
            scores[letter] = list(engine.attribute(PROMPT, prefix + letter))[index].logprob
        assert max(scores, key=lambda letter: scores[letter]) == text[index]
        assert math.isclose(scores[text[index]], steps[index].logprob, abs_tol=1e-4)


def test_forced_tokens_are_marked_and_explained(engine: Engine) -> None:
    steps = steps_of(engine, GREEDY, StructuredOutput(choice=("cat", "car")), attribution=PREFIX)
    assert [step.forced_by_grammar for step in steps] == [True, True, False, True]  # c, a, t or r, the end
    assert steps[-1].special
    assert all(step.attribution is not None and step.attribution.scores.isfinite().all() for step in steps)
    unconstrained = steps_of(engine, GREEDY, None)
    assert not any(step.forced_by_grammar for step in unconstrained)


@pytest.mark.parametrize("attribution", [None, AttributionSettings()], ids=["plain", "explained"])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_resumed_answer_goes_on_as_before(
    engine: Engine, sampling: Sampling, attribution: AttributionSettings | None
) -> None:
    ids = [step.id for step in steps_of(engine, sampling, PERSON)]
    for done in (1, len(ids) // 2, len(ids) - 1):
        first = None if attribution is None else done - 1
        rest = steps_of(
            engine, sampling, PERSON, attribution=attribution, forced_ids=ids[:done], first_attribution=first
        )
        assert [step.id for step in rest if step.is_new] == ids[done:]


def test_stop_texts_and_the_length_end_an_answer_anywhere(engine: Engine) -> None:
    stopped = engine.generate(PROMPT, replace(GREEDY, stop=("age",)), structured_output=PERSON)
    assert text_of(list(stopped)).endswith(', "')
    assert stopped.finished is not None
    assert stopped.finished.reason is FinishReason.STOP_TEXT
    short = engine.generate(PROMPT, replace(GREEDY, max_new_tokens=7), structured_output=PERSON)
    assert text_of(list(short)) == '{"name"'
    assert short.finished is not None
    assert short.finished.reason is FinishReason.MAX_NEW_TOKENS


def test_other_requests_of_the_pass_are_not_constrained(engine: Engine) -> None:
    alone = [step.id for step in steps_of(engine, GREEDY, None)]
    scheduler = scheduler_of(engine, max_running=4, num_tokens=900)
    requests = [
        engine.generation_request(PROMPT, sampling, structured_output=settings)
        for sampling, settings in ((GREEDY, PERSON), (GREEDY, None), (SAMPLED, PERSON))
    ]
    outputs = run(scheduler, requests)
    assert outputs[1].ids == alone
    for output in (outputs[0], outputs[2]):
        jsonschema.validate(json.loads(text_of(output.steps)), SCHEMA)


def test_another_rank_builds_the_same_request_from_its_call(engine: Engine) -> None:
    request = engine.generation_request(PROMPT, SAMPLED, structured_output=PERSON)
    assert request.call is not None
    call: RequestCall = pickle.loads(pickle.dumps(request.call))
    rebuilt = engine.request_builder.rebuild(call)
    scheduler = scheduler_of(engine, max_running=4, num_tokens=900)
    first, second = run(scheduler, [request, rebuilt])
    assert first.ids == second.ids
