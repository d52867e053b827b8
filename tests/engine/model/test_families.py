"""Every family of the table, on a tiny random model with the family's special features."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from gradellm_engine import (
    AttributionSettings,
    Delivery,
    Engine,
    GradEllm,
    Sampling,
    Sources,
    UnsupportedModelError,
)
from gradellm_engine.layers.rotary import NAME, unrotated
from gradellm_engine.model.families import FAMILIES, REFUSED, family_of
from gradellm_engine.params import Gradient, Loosening, Magnitude, Rectify, Rotary, Similarity, Sink
from gradellm_engine.passes import ragged
from support.attention.steps import RELEVANCE
from support.oracle import FamilyOracle, heat_map, relative_error
from support.scheduler_harness import run
from support.tiny_models import FAMILIES as TINY
from support.tiny_models import save_random_model

PROMPT = "Once upon a time, there was a small red fox"  # longer than the windows
TOLERANCE = 1e-5
STEPS = 4
SWITCHES = [
    GradEllm(),
    GradEllm(similarity=Similarity.COSINE, rectify=Rectify.NONE),
    GradEllm(loosening=Loosening.NONE),
    GradEllm(loosening=Loosening.NONE, rectify=Rectify.NONE, magnitude=Magnitude.KNOCKOUT),
    GradEllm(sink=Sink.EXCLUDE),
    GradEllm(loosening=Loosening.NONE, rectify=Rectify.PER_HEAD, magnitude=Magnitude.KNOCKOUT, sink=Sink.EXCLUDE),
]
RELEVANCE_SWITCHES = [GradEllm(gradient=Gradient.RELEVANCE), RELEVANCE]


@pytest.fixture(params=sorted(FAMILIES), scope="module")
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with weights large enough that tokens differ."""
    family = str(request.param)
    return save_random_model(tmp_path_factory.mktemp(family), family, seed=1, initializer_range=0.15)


@pytest.fixture(scope="module")
def engine(path: Path) -> Engine:
    return Engine.load(str(path))


def test_each_family_has_a_tiny_model() -> None:
    assert set(TINY) == set(FAMILIES)


def test_refused_families_have_a_reason() -> None:
    assert not set(FAMILIES) & set(REFUSED)
    for name in FAMILIES:
        assert family_of(name) is FAMILIES[name]
    for name, reason in REFUSED.items():
        with pytest.raises(UnsupportedModelError, match=re.escape(reason)):
            family_of(name)
    with pytest.raises(UnsupportedModelError, match="'made_up'"):
        family_of("made_up")


def test_greedy_text_is_that_of_transformers(engine: Engine, path: Path) -> None:
    prompt = engine.tokenize(PROMPT)
    steps = list(engine.generate(PROMPT, Sampling(max_new_tokens=12)))
    reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    input_ids = torch.tensor([prompt.ids])
    expected = reference.generate(
        input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    assert [step.id for step in steps] == expected[0, len(prompt.ids) :].tolist()


def test_scores_equal_the_oracle(engine: Engine, path: Path) -> None:
    oracle = FamilyOracle(path)
    ids = engine.tokenize(PROMPT).ids
    sampling = Sampling(max_new_tokens=STEPS, temperature=1.0, seed=3)
    completion = [step.id for step in engine.generate(PROMPT, sampling)]
    all_switches = SWITCHES if engine.model.family.gates is None else SWITCHES + RELEVANCE_SWITCHES
    errors = {}
    for index, target in enumerate(completion):
        layers = {
            gradient: oracle.layers(ids + completion[:index], target, gradient)
            for gradient in {switches.gradient for switches in all_switches}
        }
        everywhere = torch.ones(len(ids) + index, dtype=torch.bool)
        for switches in all_switches:
            settings = AttributionSettings(switches, sources=Sources.PREFIX)
            step = list(engine.attribute(PROMPT, completion[: index + 1], settings))[-1]
            assert step.attribution is not None
            expected = heat_map(layers[switches.gradient], switches, everywhere, everywhere)
            errors[index, switches] = relative_error(step.attribution.scores, expected)
    assert max(errors.values()) <= TOLERANCE, max(errors, key=lambda key: errors[key])


@pytest.mark.parametrize("family", sorted(name for name, family in FAMILIES.items() if family.gates is None))
def test_experts_in_float64(tmp_path: Path, family: str) -> None:
    """Transformers' default implementation of experts supports float32 at most."""
    path = save_random_model(tmp_path, family, seed=1, initializer_range=0.15)
    engine = Engine.load(str(path), dtype="float64")
    oracle = FamilyOracle(path)
    ids = engine.tokenize(PROMPT).ids
    settings = AttributionSettings(sources=Sources.PREFIX)
    for step in engine.generate(PROMPT, Sampling(max_new_tokens=2), settings):
        logits = oracle.model(torch.tensor([ids]), use_cache=False).logits[0, -1].detach()
        assert step.logprob == pytest.approx(logits.log_softmax(-1)[step.id].item(), abs=1e-6)
        assert step.attribution is not None
        everywhere = torch.ones(len(ids), dtype=torch.bool)
        expected = heat_map(oracle.layers(ids, step.id), GradEllm(), everywhere, everywhere)
        assert relative_error(step.attribution.scores, expected) <= TOLERANCE
        ids.append(step.id)


def test_chunked_equals_per_token(engine: Engine) -> None:
    sampling = Sampling(max_new_tokens=9, temperature=1.0, seed=5)
    for switches in SWITCHES:
        per_token = AttributionSettings(switches)
        chunked = replace(per_token, delivery=Delivery.CHUNKED, chunk_size=4)
        for a, b in zip(
            engine.generate(PROMPT, sampling, per_token), engine.generate(PROMPT, sampling, chunked), strict=True
        ):
            assert a.id == b.id
            assert a.attribution is not None
            assert b.attribution is not None
            assert relative_error(b.attribution.scores, a.attribution.scores) <= TOLERANCE


def test_requests_together_equal_each_alone(engine: Engine) -> None:
    """Steps of several sequences, recorded ones among them, and replays of several tokens of each."""
    sampling, prompts = Sampling(max_new_tokens=9), (PROMPT, PROMPT[5:] + PROMPT[:3], PROMPT * 2)
    settings = [None, AttributionSettings(), AttributionSettings(delivery=Delivery.CHUNKED, chunk_size=4)]
    engine.model.runner.pool.evict_all()
    for attribution in settings:
        alone = [run(engine.scheduler, [engine.generation_request(p, sampling, attribution)])[0] for p in prompts]
        for _ in range(2):
            requests = [engine.generation_request(p, sampling, attribution) for p in prompts]
            for output, expected in zip(run(engine.scheduler, requests), alone, strict=True):
                assert output.ids == expected.ids
                errors = map(relative_error, output.rows, expected.rows)
                assert max(errors, default=0.0) <= 5 * TOLERANCE  # both are rounded


def test_the_rotary_embedding_can_be_undone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unrotated queries and keys are what the family's rotary embedding was applied to, for all visible tokens."""
    if not FAMILIES[engine.info.family].rotary:
        pytest.skip("some layers of this family have no rotary embedding that can be undone")
    engine.model.runner.pool.evict_all()  # else a prefix of another test would be reused
    monkeypatch.setattr(engine.model.runner, "cpu_traces", None)  # they do not call the watched functions
    num_layers = engine.info.num_layers
    forwards: set[Any] = {type(module).forward for _, module in engine.model.runner.named_modules()}
    # The globals of the model's own attention class; each family has one.
    (names,) = [f.__globals__ for f in forwards if hasattr(f, "__code__") and NAME in f.__code__.co_names]
    rotate, undo = names[NAME], unrotated
    rotated: list[Tensor] = []  # keys before rotation, layer by layer, pass by pass
    undone: list[Tensor] = []  # queries and keys, from the last layer on

    def watched_rotate(q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> Any:
        rotated.append(k)
        return rotate(q, k, *args, **kwargs)

    def watched_undo(*args: Any) -> Tensor:
        with monkeypatch.context() as patched:
            patched.setitem(names, NAME, rotate)
            undone.append(undo(*args))
        return undone[-1]

    monkeypatch.setitem(names, NAME, watched_rotate)
    monkeypatch.setattr(ragged, "unrotated", watched_undo)
    list(engine.attribute(PROMPT, " who", AttributionSettings(GradEllm(rotary=Rotary.UNROTATED))))
    assert len(undone) == 2 * num_layers
    for layer, keys in enumerate(reversed(undone[1::2])):
        expected = torch.cat(rotated[layer::num_layers], 2)[:, :, -keys.shape[2] :]
        assert torch.allclose(keys[..., : expected.shape[-1]], expected, atol=1e-5)
