"""Hooks on the model: those of a pass are removed after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from gradellm_engine import (
    AttributionSettings,
    Delivery,
    Engine,
    Sampling,
)

ModelPath = Callable[[str], Path]
GREEDY = Sampling(max_new_tokens=4)


def num_hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("delivery", Delivery)
def test_no_pass_leaves_a_hook(model_path: ModelPath, family: str, delivery: Delivery) -> None:
    """One hook for each rotary embedding, activation and gate stays; those of a pass are removed after it, also where
    it fails."""
    engine = Engine.load(str(model_path(family)))
    model = engine.model.runner.model
    num_rotaries = len(engine.model.runner.pool.cosines)
    assert num_rotaries == (0 if family == "gpt2" else 1)
    hooks = num_hooks(model)
    num_relevance_hooks = {"gpt2": 3, "gemma2": 9}.get(family, 0)  # of 3 layers; kernels of gated SiLU have none
    assert hooks == num_rotaries + num_relevance_hooks
    generation = engine.generate("abc", GREEDY, AttributionSettings(delivery=delivery, chunk_size=2))
    for _ in range(4):
        generation.advance()
        assert num_hooks(model) == hooks
        assert "forward" not in vars(model.get_output_embeddings())
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(Exception, match="not finite"):
        list(engine.generate("defgh", GREEDY, AttributionSettings(delivery=delivery)))
    assert num_hooks(model) == hooks
    assert "forward" not in vars(model.get_output_embeddings())
