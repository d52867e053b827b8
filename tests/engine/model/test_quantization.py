"""Quantised weights: explanations are exactly those of the quantised model, and close to the original model's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from gradellm_bench.full_prefix_baseline import recompute_step
from gradellm_engine import (
    AttributionSettings,
    Delivery,
    Engine,
    ModelLoadError,
    Quantization,
    Sampling,
    Sources,
    UnsupportedModelError,
)
from gradellm_engine.methods.registry import METHODS
from gradellm_engine.model.quantization import check_gradients, quantization_config
from support.methods.reference_case import quick
from support.oracle import relative_error

PROMPT = "Once upon a time, there was a small red fox"
GREEDY = Sampling(max_new_tokens=4, temperature=0.0)
# Rounding the demo model's weights changes its scores considerably: 8 bits stay much closer to the original than 4, and
# both closer than opposite scores would be.
LARGEST_CHANGE = {Quantization.INT8: 0.1, Quantization.NF4: 0.9}
quantizations = pytest.mark.parametrize("quantization", list(LARGEST_CHANGE))


@pytest.fixture(autouse=True)
def _needs_the_extra() -> None:
    for package in ("torchao", "bitsandbytes"):
        pytest.importorskip(package)


@quantizations
@pytest.mark.parametrize("delivery", list(Delivery))
def test_scores_equal_autograd_through_the_whole_prefix(
    model_path: Callable[[str], Path], quantization: Quantization, delivery: Delivery
) -> None:
    engine = Engine.load(str(model_path("demo")), quantization=quantization)
    settings = AttributionSettings(sources=Sources.PREFIX, delivery=delivery, chunk_size=3)
    reference = AutoModelForCausalLM.from_pretrained(
        model_path("demo"), dtype=torch.float32, quantization_config=quantization_config(quantization, torch.float32)
    )
    reference.requires_grad_(False).eval()
    check_gradients(reference)  # some CPUs would multiply in bfloat16 where no gradient is required
    prefix = engine.tokenize(PROMPT).ids
    for step in engine.generate(PROMPT, GREEDY, settings):
        chosen, scores = recompute_step(reference, prefix)
        assert chosen == step.id
        assert step.attribution is not None
        assert relative_error(step.attribution.scores, scores.double()) <= 1e-4
        prefix.append(chosen)


@quantizations
def test_scores_are_close_to_those_of_full_weights(
    model_path: Callable[[str], Path], quantization: Quantization
) -> None:
    full, quantised = (
        Engine.load(str(model_path("demo")), quantization=each) for each in (Quantization.NONE, quantization)
    )
    completion = [step.id for step in full.generate(PROMPT, GREEDY)]
    pairs = zip(full.attribute(PROMPT, completion), quantised.attribute(PROMPT, completion), strict=True)
    errors = [
        relative_error(rounded.attribution.scores, exact.attribution.scores.double())
        for exact, rounded in pairs
        if exact.attribution is not None and rounded.attribution is not None
    ]
    assert len(errors) == len(completion)
    assert 0 < max(errors) < LARGEST_CHANGE[quantization]


@quantizations
def test_the_model_info_names_the_quantization(model_path: Callable[[str], Path], quantization: Quantization) -> None:
    full = Engine.load(str(model_path("demo"))).info
    info = Engine.load(str(model_path("demo")), quantization=quantization).info
    assert (full.quantization, info.quantization) == ("none", quantization)
    assert (info.num_parameters, info.weights_sha256) == (full.num_parameters, full.weights_sha256)


@quantizations
def test_a_missing_library_is_an_error_with_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch, quantization: Quantization
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelLoadError, match=r"pip install 'gradellm\[quant\]'"):
        Engine.load(quantization=quantization)


def test_a_layer_without_a_gradient_is_refused(
    model_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as bitsandbytes' kernel for some CPUs: scores would miss the gradients below the layer."""
    from bitsandbytes.nn import Linear4bit

    forward = Linear4bit.forward
    monkeypatch.setattr(Linear4bit, "forward", lambda self, x: forward(self, x).detach())
    with pytest.raises(UnsupportedModelError, match="no gradient passes through the quantised layer"):
        Engine.load(str(model_path("demo")), quantization=Quantization.NF4)


@quantizations
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.explain is not None])
def test_methods_explain_quantised_models(
    model_path: Callable[[str], Path], quantization: Quantization, name: str
) -> None:
    settings = AttributionSettings(method=quick(name, steps=5, samples=5))
    full, quantised = (
        list(Engine.load(str(model_path("demo")), quantization=each).attribute(PROMPT, " The fox", settings))
        for each in (Quantization.NONE, quantization)
    )
    for exact, rounded in zip(full, quantised, strict=True):
        assert exact.attribution is not None
        assert rounded.attribution is not None
        error = relative_error(rounded.attribution.scores, exact.attribution.scores.double())
        assert error < LARGEST_CHANGE[quantization]
