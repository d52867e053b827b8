"""A model dispatched by accelerate, whose hooks move tensors between modules, is explained as one on a single device.

Every module has hooks here, and all are on the CPU; machines with several devices are not tested.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradellm_engine import AttributionSettings, Delivery, Engine, Sampling
from gradellm_engine.methods.registry import METHODS
from gradellm_engine.model.loader import wrap_model
from support.methods.reference_case import quick
from support.oracle import relative_error

PROMPT = "A red fox."


@pytest.fixture(scope="module")
def engines(model_path: Callable[[str], Path]) -> tuple[Engine, Engine]:
    """On a single device, and dispatched."""
    path = model_path("llama")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    modules = ["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"]
    modules += [f"model.layers.{index}" for index in range(len(model.model.layers))]
    spread = dispatch_model(model, dict.fromkeys(modules, "cpu"), main_device="cpu", force_hooks=True)
    assert "forward" in vars(spread.model.layers[0])
    return Engine.load(str(path)), Engine(wrap_model(spread, AutoTokenizer.from_pretrained(path), name="spread"))


@pytest.mark.parametrize("name", METHODS)
def test_every_method(engines: tuple[Engine, Engine], name: str) -> None:
    settings = AttributionSettings(method=quick(name, steps=5, samples=5))
    for step, expected in zip(*(engine.attribute(PROMPT, "abc", settings) for engine in engines), strict=True):
        assert step.attribution is not None
        assert expected.attribution is not None
        # Modules that accelerate has wrapped have no kernels, whose sums are rounded otherwise.
        assert relative_error(expected.attribution.scores, step.attribution.scores.double()) <= 3e-5


@pytest.mark.parametrize("delivery", Delivery)
def test_generated_text(engines: tuple[Engine, Engine], delivery: Delivery) -> None:
    settings = AttributionSettings(delivery=delivery, chunk_size=2)
    for actual, expected in zip(
        *(engine.generate(PROMPT, Sampling(max_new_tokens=5), settings) for engine in engines), strict=True
    ):
        assert actual.id == expected.id
        assert actual.attribution is not None
        assert expected.attribution is not None
        assert relative_error(expected.attribution.scores, actual.attribution.scores.double()) <= 1e-5
