"""U: the perturbable tokens of a prompt, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from gradellm_engine import (
    Engine,
    EvaluatedMethod,
    EvaluationSettings,
    GradEllm,
    InvalidRequestError,
    Message,
    Metric,
    Perturb,
    PromptInput,
    Segment,
    Sink,
)
from gradellm_engine.faithfulness.perturbable_tokens import PerturbableTokens
from support.faithfulness.evaluations import (
    CHAT,
    RAW,
    methods,
    own_scores,
    run_evaluation,
)

Engines = Callable[..., Engine]


@pytest.mark.parametrize(
    ("perturb", "expected"),
    [
        (Perturb.USER, "A red fox ran. Who ran?"),
        (Perturb.PROMPT, "<s><|system|>Be brief. Be kind.</s><|user|>A red fox ran. Who ran?</s><|assistant|>"),
    ],
)
def test_the_perturbable_tokens(load: Engines, perturb: Perturb, expected: str) -> None:
    engine = load("llama")
    rows = own_scores(1, len(engine.tokenize(CHAT).tokens))
    settings = EvaluationSettings((EvaluatedMethod("own", rows=rows),), (Metric.SOFT_NS,), perturb=perturb)
    found = run_evaluation(engine, engine.evaluation_request(CHAT, settings, [70]))
    assert found.summary.num_perturbable == len(engine.model.tokenizer(expected, add_special_tokens=False)["input_ids"])


def test_a_sink_that_a_method_leaves_out_is_perturbed_for_none(load: Engines) -> None:
    """Position 0, which is the user's in a model without BOS; else methods would be compared on different U."""
    prompt, without = load("llama").tokenize(RAW), EvaluatedMethod("without", GradEllm(sink=Sink.EXCLUDE))
    everything = replace(METHOD, perturb=Perturb.PROMPT)
    assert list(PerturbableTokens(prompt, everything).positions) == list(range(len(prompt.tokens)))
    for settings in (METHOD, everything, replace(METHOD, positions=(0, 4))):
        both = replace(settings, methods=(*settings.methods, without))
        expected = [position for position in PerturbableTokens(prompt, settings).positions if position > 0]
        assert list(PerturbableTokens(prompt, both).positions) == expected
    with pytest.raises(InvalidRequestError, match="sink=exclude leaves out"):
        PerturbableTokens(prompt, replace(METHOD, methods=(without,), positions=(0,)))


OWN = EvaluationSettings((EvaluatedMethod("own"),), (Metric.TOKEN_F1,), rationale=("reason",))
METHOD = EvaluationSettings(methods(GradEllm()), (Metric.PI_SOFT_NS,))
NAMED = PromptInput(prompt=RAW, segments=(Segment("reason", 2, 9), Segment("space", 9, 10)))
ALL = PromptInput(prompt=RAW, segments=(Segment("all", 0, len(RAW)),))


@pytest.mark.parametrize(
    ("field", "prompt_input", "settings", "message"),
    [
        ("perturb_positions", RAW, replace(METHOD, positions=(3, 29)), "29 tokens"),
        ("perturb_positions", RAW, replace(METHOD, positions=(-1,)), "29 tokens"),
        ("perturb_positions", RAW, replace(METHOD, positions=(3, 3)), "each once"),
        ("perturb", PromptInput(prompt_ids=(256,)), METHOD, "no token of the user's"),
        ("perturb", PromptInput(messages=(Message("system", "Be kind."),)), METHOD, "no token of the user's"),
        ("rationale", NAMED, replace(OWN, rationale=("reason", "because")), "'because' is not a segment"),
        ("rationale", RAW, OWN, "none"),
        ("rationale", ALL, replace(OWN, rationale=("all",)), "not all of them"),
        (
            "rationale",
            PromptInput(messages=CHAT.messages, segments=(Segment("kind", 10, 18, 0),)),
            replace(OWN, rationale=("kind",)),
            "some of the 23",
        ),
    ],
)
def test_prompts_without_such_tokens_are_refused(
    load: Engines, field: str, prompt_input: PromptInput | str, settings: EvaluationSettings, message: str
) -> None:
    if isinstance(prompt_input, str):
        prompt_input = PromptInput(prompt=prompt_input)
    prompt = load("llama").tokenize(prompt_input)
    with pytest.raises(InvalidRequestError) as caught:
        PerturbableTokens(prompt, settings)
    assert caught.value.field == field
    assert message in caught.value.description
