"""The registered attention function: only the engine's models use it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from gradellm_engine import (
    AttributionSettings,
    Engine,
    Sampling,
)

ModelPath = Callable[[str], Path]
GREEDY = Sampling(max_new_tokens=4)


def test_other_models_in_the_process_are_unaffected(model_path: ModelPath) -> None:
    path = model_path("llama")
    tokens = torch.tensor([[256, 1, 2, 3]])

    def run(model: Any) -> tuple[Tensor, Tensor]:
        model.zero_grad()
        logits = model(tokens).logits
        logits[0, -1, 7].backward()
        return logits.detach(), model.model.embed_tokens.weight.grad.clone()

    before = AutoModelForCausalLM.from_pretrained(path)
    expected = run(before)
    engine = Engine.load(str(path))
    generation = engine.generate("abc", GREEDY, AttributionSettings())
    generation.advance()
    after = AutoModelForCausalLM.from_pretrained(path)
    for model in (before, after):
        assert model.config._attn_implementation == "sdpa"
        assert all(torch.equal(a, b) for a, b in zip(run(model), expected, strict=True))
    assert len(list(generation)) > 0
    with pytest.raises(RuntimeError, match="belongs to a gradellm ModelRunner"):
        engine.model.runner.model(tokens)
