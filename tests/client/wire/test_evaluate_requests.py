"""Keywords of evaluate to its request: values arrive, and invalid ones are refused with the keyword's name."""

from __future__ import annotations

from typing import Any

import pytest

from client.conftest import play
from gradellm import Explanation, InvalidRequestError
from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire.evaluate_requests import evaluate_request
from gradellm.wire.responses import event

OPTIONS = pb.AttributionOptions


def request(prompt: str | None = "Once", **keywords: Any) -> pb.EvaluateRequest:
    return evaluate_request(prompt, keywords)  # type: ignore[arg-type]


@pytest.fixture
def explanation() -> Explanation:
    carried: list[dict[str, Any]] = [{type(item).__name__.lower(): item} for item in play()]
    responses = [pb.GenerateResponse(**item) for item in carried]
    return Explanation.from_events(filter(None, map(event, responses)))


def test_default_methods_and_metrics() -> None:
    methods = request().evaluation.methods
    assert [(method.name, method.attribution) for method in methods] == [
        ("", OPTIONS()),  # the server's default, which the server names
        ("random", OPTIONS(method="random")),
    ]
    own = request(scores={"mine": {0: [1.0]}}, completion="x").evaluation
    assert (len(own.methods), own.scores[0].name) == (0, "mine")


def test_names_of_presets_methods_and_callers() -> None:
    assert request(methods=["knockout", "saliency"]).evaluation.methods[0].attribution.preset == pb.PRESET_KNOCKOUT
    named = request(methods={"sum": {"method": "saliency", "aggregation": "sum"}, "lime": None}).evaluation.methods
    assert [method.name for method in named] == ["sum", "lime"]
    assert named[0].attribution == OPTIONS(method="saliency", aggregation=pb.AGGREGATION_SUM)
    assert named[1].attribution == OPTIONS(method="lime")


def test_keywords_reach_the_request() -> None:
    message = request(
        completion_ids=[1, 2], metrics=["auprc", "pi_soft_nc"], pis=[0.25, 0.5], samples=7, stride=2, offset=1, seed=9,
        perturb="prefix", removal="pad", raw_scores=True, rationale=["why"], scores={"mine": {0: [0.5, 1], 2: [1.0]}},
    )  # fmt: skip
    arrived = pb.EvaluateRequest.FromString(message.SerializeToString())
    assert arrived.completion_ids == [1, 2]
    assert arrived.evaluation == pb.EvaluationOptions(
        scores=[
            pb.GivenScores(name="mine", rows=[pb.ScoreRow(step=0, scores=[0.5, 1]), pb.ScoreRow(step=2, scores=[1.0])])
        ],
        metrics=[pb.METRIC_AUPRC, pb.METRIC_PI_SOFT_NC],
        pis=[0.25, 0.5],
        samples=7,
        stride=2,
        offset=1,
        seed=9,
        perturb=pb.PERTURB_PREFIX,
        removal=pb.REMOVAL_PAD,
        raw_scores=True,
        rationale=["why"],
    )
    generation = request(max_new_tokens=5, temperature=1, generation_seed=3, stop="\n").generation
    assert generation == pb.GenerationOptions(max_new_tokens=5, temperature=1.0, seed=3, stop=["\n"])
    assert not request(labels=["a", "b"]).HasField("generation")


def test_an_explanation_is_sent_as_it_was(explanation: Explanation) -> None:
    message = request(None, explanation=explanation, seed=4)
    assert message.input.prompt_ids == [token.id for token in explanation.prompt_tokens]
    assert message.completion_ids == [token.id for token in explanation.tokens]
    assert message.evaluation.perturb_positions == [1, 2, 3, 4]  # not the token that the tokenizer adds
    assert [method.name for method in message.evaluation.methods] == ["random"]
    (own,) = message.evaluation.scores
    assert own.name == "explanation"
    assert [list(row.scores) for row in own.rows] == [list(row) for row in explanation.scores]
    assert not request(None, explanation=explanation, perturb="prompt").evaluation.perturb_positions
    named = request(None, explanation=explanation, methods=["saliency"]).evaluation.methods
    assert [method.name for method in named] == ["saliency"]


@pytest.mark.parametrize(
    ("keywords", "field"),
    [
        ({"completion": "a", "completion_ids": [1]}, "completion_ids"),
        ({"completion": "a", "max_new_tokens": 3}, "max_new_tokens"),
        ({"labels": ["a", "b"], "temperature": 1.0}, "temperature"),
        ({"labels": "ab"}, "labels"),
        ({"labels": ["a", 3]}, "labels[1]"),
        ({"methods": "saliency"}, "methods"),
        ({"methods": {"a": "saliency"}}, "methods['a']"),
        ({"methods": {"a": {"magic": 1}}}, "methods['a']"),
        ({"methods": {"a": {"loosening": "x"}}}, "loosening"),
        ({"metrics": ["magic"]}, "metrics"),
        ({"metrics": "pi_soft_ns"}, "metrics"),
        ({"pis": [0.1, "b"]}, "pis[1]"),
        ({"pis": 0.1}, "pis"),
        ({"samples": 1.5}, "samples"),
        ({"seed": 2**63}, "seed"),
        ({"scores": [1.0]}, "scores"),
        ({"scores": {"a": [1.0]}}, "scores['a']"),
        ({"scores": {"a": {"0": [1.0]}}}, "scores['a']"),
        ({"scores": {"a": {0: ["x"]}}}, "scores['a'][0]"),
        ({"perturb": "all"}, "perturb"),
        ({"perturb_positions": []}, "perturb_positions"),
        ({"removal": 3}, "removal"),
        ({"rationale": "why"}, "rationale"),
    ],
)
def test_invalid_keywords_are_named(keywords: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        request(**keywords)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_keywords_that_contradict_an_explanation_are_refused(explanation: Explanation) -> None:
    for name, value in (("completion", "a"), ("labels", ["a", "b"]), ("prompt_ids", [1]), ("max_new_tokens", 3)):
        with pytest.raises(InvalidRequestError, match=f"{name}: cannot be combined with explanation"):
            request(None, explanation=explanation, **{name: value})
    with pytest.raises(InvalidRequestError, match="prompt: cannot be combined with explanation"):
        request("Once", explanation=explanation)
    with pytest.raises(InvalidRequestError, match="is reserved for the explanation's own scores"):
        request(None, explanation=explanation, scores={"explanation": {}})


def test_unknown_keywords_are_refused() -> None:
    with pytest.raises(TypeError, match="evaluate\\(\\) has no keyword sample; did you mean samples"):
        request(sample=3)
