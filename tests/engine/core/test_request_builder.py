"""Invalid requests are refused before any pass, naming the field and the limit; requests are rebuilt from calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.core.generation_helpers import GREEDY, PREFIX, clear_kv_cache
from gradellm_engine import (
    AttributionSettings,
    Contrast,
    Engine,
    EvaluatedMethod,
    EvaluationSettings,
    GenerationIterator,
    GradEllm,
    InvalidRequestError,
    Metric,
    PromptInput,
    Sampling,
    TokenSelection,
)
from support.scheduler_harness import run_alone
from support.tiny_models import byte_tokenizer, save_random_model

ModelPath = Callable[[str], Path]


@pytest.mark.parametrize(
    ("call", "field", "limit"),
    [
        (lambda e: e.tokenize("x" * 256), "input", "255"),
        (lambda e: e.generate("x" * 256), "input", "255"),
        (lambda e: e.attribute("x" * 256, "y"), "input", "255"),
        (lambda e: e.generate("x" * 99, Sampling(max_new_tokens=157)), "max_new_tokens", "156"),
        (lambda e: e.attribute("x" * 99, "y" * 157), "completion", "156"),
        (lambda e: e.attribute("x" * 99, [1] * 157), "completion", "156"),
        (lambda e: e.generate("x", GREEDY, forced_ids=[1] * 13), "forced_ids", "12"),
        (lambda e: e.generate("x", GREEDY, forced_ids=[1, 261]), "forced_ids[1]", "260"),
        (lambda e: e.generate("x", GREEDY, forced_ids=[1], first_attribution=2), "first_attribution", "1"),
        (lambda e: e.generate("x", GREEDY, forced_ids=[1], first_attribution=-1), "first_attribution", "1"),
        (lambda e: e.attribute("x", [-1]), "completion_ids[0]", "260"),
        (lambda e: e.attribute("x", []), "completion", "at least one"),
        (lambda e: e.attribute("x", ""), "completion", "empty"),
        (lambda e: e.attribute("x", "\ud800"), "completion", "surrogate"),
        (lambda e: e.generate(PromptInput(prompt_ids=(261,))), "input.prompt_ids[0]", "260"),
        (
            lambda e: e.generate("x", GREEDY, AttributionSettings(contrast=Contrast(text="\ud800"))),
            "attribution.contrast.text",
            "surrogate",
        ),
    ],
)
def test_impossible_requests_name_their_field_and_the_limit(
    engine: Engine, call: Callable[[Engine], object], field: str, limit: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        call(engine)
    assert caught.value.field == field
    assert limit in caught.value.description


def test_tokens_without_an_embedding_are_refused(tmp_path: Path) -> None:
    """On a GPU, an index beyond the embedding is a device-side assertion, after which the process cannot use it."""
    path = save_random_model(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["fox"])
    tokenizer.save_pretrained(path)
    engine = Engine.load(str(path))
    contrast = AttributionSettings(contrast=Contrast(text="fox"))
    calls: dict[str, Callable[[], GenerationIterator]] = {
        "input": lambda: engine.generate("a fox"),
        "completion": lambda: engine.attribute("a", " fox"),
        "attribution.contrast.text": lambda: engine.generate("a", GREEDY, contrast),
    }
    for field, call in calls.items():
        with pytest.raises(InvalidRequestError, match=r"token 261.*ends at 260") as caught:
            call()
        assert caught.value.field == field


def test_a_full_context(model_path: ModelPath) -> None:
    engine = Engine.load(str(model_path("llama")), context_tokens=8)
    assert (engine.max_prompt_tokens, engine.max_new_tokens) == (7, 7)
    assert len(list(engine.generate("abcdef", attribution=PREFIX))) == 1
    assert len(list(engine.generate("a"))) == 6
    with pytest.raises(InvalidRequestError, match="at most 1 are possible"):
        engine.generate("abcdef", Sampling(max_new_tokens=2))
    with pytest.raises(InvalidRequestError, match="the limit is 7"):
        engine.generate("abcdefg")


def test_a_request_is_rebuilt_from_its_call(engine: Engine) -> None:
    """As on another rank: with the tokens, the seed and the length of the first, so with the same output."""
    settings = EvaluationSettings((EvaluatedMethod("grad_ellm", GradEllm()),), metrics=(Metric.SOFT_NS,), stride=2)
    sampling = Sampling(max_new_tokens=4, temperature=1.5)
    for request in (
        engine.generation_request("a fox", sampling, AttributionSettings(GradEllm(layers=2)), tenant="a"),
        engine.generation_request("a fox", sampling, forced_ids=[70, 71], first_attribution=1),
        engine.attribution_request("a fox", "bc", AttributionSettings(contrast=Contrast(text="z")), num_alternatives=2),
        engine.attribution_request("a fox", "bc", AttributionSettings(tokens=TokenSelection(spans=((1, 2),)))),
        engine.evaluation_request("a fox", settings, "bc"),
        engine.evaluation_request("a fox", settings, sampling=sampling),
    ):
        assert request.call is not None
        rebuilt = engine.request_builder.rebuild(request.call)
        assert rebuilt.call == request.call
        assert rebuilt.tenant == request.tenant
        output, expected = run_alone(engine, rebuilt), run_alone(engine, request)
        assert output.ids == expected.ids
        assert all(torch.equal(a, b) for a, b in zip(output.rows, expected.rows, strict=True))
        assert [type(event) for event in output.events] == [type(event) for event in expected.events]
    clear_kv_cache(engine)  # with its full size again
