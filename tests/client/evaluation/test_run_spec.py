"""Run specifications: methods by name, a seed for each example, the run's identity."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from gradellm.errors import InvalidRequestError
from gradellm.evaluation.examples import Example
from gradellm.evaluation.names import PAPER_METHODS
from gradellm.evaluation.presets import PRESETS, custom_preset
from gradellm.evaluation.run_spec import RunSpec, model_difference, named_methods, seed_of
from gradellm.models import ModelInfo, ServerInfo
from gradellm.transport import calls
from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire.responses import server_info

NAMES = (*PAPER_METHODS, "lime", "relevance")
EXAMPLE = Example("7", "d.jsonl, line 1", (("system", "S"), ("user", "Text: a b")), None, "Positive", None, {})
PLAN = RunSpec(PRESETS["sst2"], {"random": {"method": "random"}})


def info(**model: Any) -> ServerInfo:
    methods = [pb.MethodInfo(name=name, refusal="it has no gates" if name == "relevance" else "") for name in NAMES]
    return server_info(pb.GetServerInfoResponse(model=pb.ModelInfo(name="m", **model), methods=methods))


def model(**changes: Any) -> ModelInfo:
    return info(**changes).model


def test_the_papers_methods_in_its_order() -> None:
    assert list(named_methods(["paper"], info())) == [
        "attention", "deeplift", "input_x_gradient", "integrated_gradients", "layer_gradient_x_activation", "random",
        "saliency", "value_zeroing", "grad_ellm", "knockout",
    ]  # fmt: skip
    assert named_methods(["paper"], info())["layer_gradient_x_activation"]["layer"] == -1
    assert list(named_methods(["paper"], info(), ["deletion"]))[-3:] == ["grad_ellm", "unloosened", "knockout"]


def test_all_means_every_supported_method() -> None:
    """An older server has fewer presets; where relevance is refused, so is the preset that propagates it."""
    of_older = {*PAPER_METHODS, "lime", "unloosened", "grad_eclip", "knockout"}
    assert set(named_methods(["all"], info())) == of_older
    newer = replace(info(), recommended_preset="head_abs_no_sink")
    assert set(named_methods(["all"], newer)) == of_older | {"head_abs_no_sink"}
    methods = tuple(replace(method, refusal="") for method in newer.methods)
    with_gates = replace(newer, recommended_preset="step_relevance", methods=methods)
    assert set(named_methods(["all"], with_gates)) == of_older | {"head_abs_no_sink", "step_relevance", "relevance"}


def test_methods_and_presets_by_name() -> None:
    assert named_methods(["lime", "knockout", "lime", "paper"], info()).keys() == {"lime", "knockout", *PAPER_METHODS}
    assert named_methods(["unloosened"], info()) == {"unloosened": {"attribution": "unloosened"}}


def test_the_recommended_preset_has_its_own_name_in_a_run() -> None:
    """A resumed run must not mix what two versions recommend; an older server, without the preset, refuses it."""
    told = replace(info(), recommended_preset="knockout")
    assert named_methods(["recommended", "knockout"], told) == {"knockout": {"attribution": "knockout"}}
    assert named_methods(["recommended"], info()) == {"recommended": {"attribution": "recommended"}}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("salience", "no method 'salience'; did you mean saliency"),
        ("knock_out", "did you mean knockout"),
        ("zzz", "there are all, attention, "),
        ("relevance", "cannot be computed for this model: it has no gates"),
    ],
)
def test_names_that_do_not_do(name: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        named_methods(["random", name], info())


def test_an_examples_seed_is_its_own_and_always_the_same() -> None:
    digest = hashlib.sha256(b"gradellm evaluate:0:sst2-dev-0").hexdigest()
    assert seed_of(0, "sst2-dev-0") == int(digest, 16) >> 193  # its first 63 bits
    seeds = {seed_of(seed, str(example_id)) for seed in range(20) for example_id in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_prompts_of_label_presets() -> None:
    prompt, keywords = PLAN.request(EXAMPLE)
    assert prompt is None
    assert keywords["labels"] == ("Positive", "Negative")
    assert keywords["seed"] == seed_of(0, "7")
    request = calls.evaluate(prompt, keywords).request
    assert isinstance(request, pb.EvaluateRequest)
    assert request.evaluation.samples == 3
    assert len(request.evaluation.pis) == 19
    assert not request.HasField("generation")


def test_prompts_of_open_presets() -> None:
    plan = replace(PLAN, preset=custom_preset("{text}"), max_new_tokens=12, stride=4)
    prompt, keywords = plan.request(replace(EXAMPLE, messages=None, prompt="a b"))
    request = calls.evaluate(prompt, keywords).request
    assert isinstance(request, pb.EvaluateRequest)
    assert (request.input.prompt, request.generation.max_new_tokens, request.evaluation.stride) == ("a b", 12, 4)


def test_a_rationale_becomes_segments() -> None:
    plan = replace(PLAN, metrics=("pi_soft_ns", "auprc"))
    _, keywords = plan.request(replace(EXAMPLE, rationale=((6, 7), (8, 9))))
    assert keywords["segments"] == {"rationale 1": (1, 6, 7), "rationale 2": (1, 8, 9)}
    assert keywords["rationale"] == ["rationale 1", "rationale 2"]
    _, keywords = plan.request(EXAMPLE)
    assert keywords["metrics"] == ["pi_soft_ns"]
    assert "segments" not in keywords
    with pytest.raises(InvalidRequestError, match="rationale"):
        replace(plan, metrics=("auprc",)).request(EXAMPLE)


CHANGES: list[dict[str, Any]] = [
    {"preset": PRESETS["imdb"]}, {"methods": {"lime": {"method": "lime"}}}, {"metrics": ("soft_ns",)}, {"pis": (0.5,)},
    {"samples": 4}, {"stride": 1}, {"offset": 1}, {"seed": 1}, {"perturb": "prompt"}, {"removal": "zero"},
    {"raw_scores": True}, {"chat": False}, {"sample": 9}, {"balance": True},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_settings_that_affect_results_identify_a_run(change: dict[str, Any]) -> None:
    assert replace(PLAN, **change).settings([EXAMPLE], model()) != PLAN.settings([EXAMPLE], model())


def test_a_runs_identity_covers_data_and_model_not_their_paths() -> None:
    before = PLAN.settings([EXAMPLE], model())
    assert PLAN.settings([replace(EXAMPLE, label="Negative")], model()) != before
    assert PLAN.settings([EXAMPLE], model(dtype="bfloat16")) != before
    assert PLAN.settings([replace(EXAMPLE, origin="elsewhere, line 3")], model(device="cuda", num_layers=9)) == before


def test_models_that_differ() -> None:
    assert model_difference(model(), model(device="cuda")) is None
    assert model_difference(model(dtype="float32"), model(dtype="int8")) == "different dtypes, float32 (m) and int8 (m)"
    assert "different configurations, cdcdcdcdcdcd (m) and efefefefefef (m)" in str(
        model_difference(model(config_sha256="cd" * 32), model(config_sha256="ef" * 32))
    )
    assert model_difference(model(config_sha256="cd" * 32), model()) is None  # an older server does not tell it
    assert "different weights, abababababab (m) and none (m)" in str(
        model_difference(model(weights_sha256="ab" * 32), model())
    )
