"""Settings are resolved against the model: layers, seeds, lengths; what the model does not have is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from gradellm_engine import (
    AttributionSettings,
    Contrast,
    Engine,
    EvaluatedMethod,
    EvaluationSettings,
    GradEllm,
    Gradient,
    InvalidRequestError,
    Metric,
    NormaliseOver,
    PromptInput,
    Sampling,
)
from gradellm_engine.attribution.attention_weights import Attention
from gradellm_engine.core import settings_resolver
from gradellm_engine.core.settings_resolver import SettingsResolver
from gradellm_engine.methods.gradients.relevance import Relevance
from gradellm_engine.methods.gradients.saliency import Saliency
from gradellm_engine.methods.perturbation.value_zeroing import ValueZeroing
from gradellm_engine.methods.random import Random
from gradellm_engine.methods.registry import METHODS
from gradellm_engine.tokenization.prompt import Prompt


@pytest.fixture(scope="module")
def resolver_of(model_path: Callable[[str], Path], engine: Engine) -> Callable[[str], SettingsResolver]:
    """The resolver of a family's random model, of three layers and 261 tokens."""

    @cache
    def resolver(family: str) -> SettingsResolver:
        loaded = engine if family == "llama" else Engine.load(str(model_path(family)))
        return loaded.request_builder.resolver

    return resolver


@pytest.fixture
def resolver(resolver_of: Callable[[str], SettingsResolver]) -> SettingsResolver:
    return resolver_of("llama")


@pytest.fixture
def prompt(engine: Engine) -> Prompt:
    return engine.tokenize("a fox")


def refused(call: Callable[[], object]) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        call()
    return caught.value


def test_sampling_gets_a_seed_and_a_length(resolver: SettingsResolver, prompt: Prompt) -> None:
    first, second = (resolver.sampling(Sampling(temperature=0.5), prompt) for _ in range(2))
    assert first.seed is not None
    assert first.seed != second.seed
    assert first.max_new_tokens == 256 - len(prompt.tokens)  # the rest of the model's context
    assert replace(first, seed=None, max_new_tokens=None) == Sampling(temperature=0.5)
    given = Sampling(seed=0, max_new_tokens=3)
    assert resolver.sampling(given, prompt) == given


@pytest.mark.parametrize(("layers", "indexes"), [(None, (0, 1, 2)), (1, (2,)), ((2, 0), (0, 2))])
def test_layers_become_indexes(
    resolver: SettingsResolver, prompt: Prompt, layers: int | tuple[int, ...] | None, indexes: tuple[int, ...]
) -> None:
    settings = AttributionSettings(GradEllm(layers=layers), contrast=Contrast(token_id=260), target_token_id=0)
    resolved = resolver.attribution(settings, prompt, is_completion=False)
    assert resolved == replace(settings, method=GradEllm(layers=indexes))
    evaluated = (EvaluatedMethod("it", GradEllm(layers=layers)), EvaluatedMethod("own", rows={0: [0.5]}))
    evaluation = EvaluationSettings(evaluated, stride=1)
    assert resolver.evaluation(evaluation, prompt, 1).methods == (
        EvaluatedMethod("it", GradEllm(layers=indexes)),
        evaluated[1],
    )


@pytest.mark.parametrize(
    ("settings", "field", "limit"),
    [
        (AttributionSettings(target_token_id=261), "attribution.target_token_id", "260"),
        (AttributionSettings(target_token_id=-1), "attribution.target_token_id", "260"),
        (AttributionSettings(contrast=Contrast(token_id=-1)), "attribution.contrast.token_id", "260"),
        (AttributionSettings(GradEllm(layers=(3,))), "attribution.layers", "0 to 2"),
        (AttributionSettings(GradEllm(layers=4)), "attribution.layers", "3"),
    ],
)
def test_tokens_and_layers_that_the_model_does_not_have_are_refused(
    resolver: SettingsResolver, prompt: Prompt, settings: AttributionSettings, field: str, limit: str
) -> None:
    error = refused(lambda: resolver.attribution(settings, prompt, is_completion=False))
    assert error.field == field
    assert limit in error.description


@pytest.mark.parametrize("method", [Attention(), Random(), ValueZeroing()])
@pytest.mark.parametrize("target", [{"target_token_id": 7}, {"contrast": Contrast(token_id=7)}])
def test_methods_that_explain_no_logit_have_no_target(
    resolver: SettingsResolver, prompt: Prompt, method: Any, target: dict[str, Any]
) -> None:
    resolver.attribution(AttributionSettings(method), prompt, is_completion=True)
    error = refused(lambda: resolver.attribution(AttributionSettings(method, **target), prompt, is_completion=True))
    assert error.field == f"attribution.{next(iter(target))}"
    assert method.name in error.description


@pytest.mark.parametrize("name", METHODS)
def test_a_post_hoc_method_explains_completions_only(resolver: SettingsResolver, prompt: Prompt, name: str) -> None:
    settings = AttributionSettings(METHODS[name].switches())
    resolver.attribution(settings, prompt, is_completion=True)
    if METHODS[name].explain is None:
        resolver.attribution(settings, prompt, is_completion=False)
        return
    error = refused(lambda: resolver.attribution(settings, prompt, is_completion=False))
    assert error.field == "attribution.method"
    assert "grad_ellm, attention, grad_sam, random explain it" in error.description


@pytest.mark.parametrize(
    ("family", "method", "field", "message"),
    [
        ("gpt2", GradEllm.preset("grad_eclip"), "attribution.rotary", "unrotated is not defined for the family gpt2"),
        (
            "mixtral",
            GradEllm(gradient=Gradient.RELEVANCE),
            "attribution.gradient",
            "relevance is not defined for the family mixtral: the gates of its experts cannot be read; use true",
        ),
        ("mixtral", Relevance(), "attribution.method", "relevance is not defined for the family mixtral"),
    ],
)
def test_methods_that_a_family_does_not_have_are_refused(
    resolver_of: Callable[[str], SettingsResolver],
    prompt: Prompt,
    family: str,
    method: Any,
    field: str,
    message: str,
) -> None:
    """In explanations and in evaluations."""
    evaluation = EvaluationSettings((EvaluatedMethod("it", method),))
    calls: tuple[Callable[[SettingsResolver], object], ...] = (
        lambda resolver: resolver.attribution(AttributionSettings(method), prompt, is_completion=True),
        lambda resolver: resolver.evaluation(evaluation, prompt, 3),
    )
    for call in calls:
        call(resolver_of("llama"))
        error = refused(lambda call=call: call(resolver_of(family)))  # type: ignore[misc]
        assert error.field == field
        assert message in error.description
    row = METHODS[method.name]
    assert resolver_of("llama").refusal(row) == ""
    assert (resolver_of(family).refusal(row) == "") is (field != "attribution.method")


def test_normalising_over_the_user_s_text_needs_some(engine: Engine, resolver: SettingsResolver) -> None:
    settings = AttributionSettings(GradEllm(normalise_over=NormaliseOver.USER))
    resolver.attribution(settings, engine.tokenize("a"), is_completion=False)
    bos_alone = engine.tokenize(PromptInput(prompt_ids=(256,)))
    error = refused(lambda: resolver.attribution(settings, bos_alone, is_completion=False))
    assert error.field == "attribution.normalise_over"
    assert "no token of the user's own text" in error.description


def test_an_evaluation_may_be_as_large_as_its_limits(
    resolver: SettingsResolver, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 2 methods, 2 pis and 3 samples: 12 texts a step, and 4 of 7 tokens are evaluated."""
    methods = (EvaluatedMethod("a", Random()), EvaluatedMethod("b", Saliency()))
    settings = EvaluationSettings(methods, (Metric.PI_SOFT_NS,), (0.2, 0.7), samples=3, stride=2)
    tokens = 12 * (len(prompt.tokens) + 7)
    for name, size in (("MAX_EVALUATION_SEQUENCES", 48), ("MAX_EVALUATION_STEP_TOKENS", tokens)):
        monkeypatch.setattr(settings_resolver, name, size)
        assert resolver.evaluation(settings, prompt, 7) == settings
        with monkeypatch.context() as patch:
            patch.setattr(settings_resolver, name, size - 1)
            error = refused(lambda: resolver.evaluation(settings, prompt, 7))
        assert error.field == "samples"
        assert f"{size:,}" in error.description
        assert f"limit is {size - 1:,}" in error.description
