"""Patches of a model: what they replace, what is logged, and that they can be undone."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from gradellm_engine.layers.linear import fuse_shared_input_linears
from gradellm_engine.layers.patches import apply_patches, undo_patches

SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 8,
    "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [3.0, 3.3, 3.6, 3.9],
}  # fmt: skip


def llama(**overrides: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        intermediate_size=48,
        num_hidden_layers=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        **SIZES,
        **overrides,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32)
    return GPT2LMHeadModel(config).eval().requires_grad_(False)


def logits(model: PreTrainedModel, length: int) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(torch.arange(length)[None], use_cache=False).logits
    return result


def state(model: nn.Module) -> list[tuple[str, type, set[str]]]:
    """Class and attributes of every module."""
    return [(name, type(module), set(vars(module))) for name, module in model.named_modules()]


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (llama(), {"replaces_layers": True}),
        (llama(rope_parameters=LONGROPE), {"rotary_switch": 8, "replaces_layers": True}),
        (llama(), {"batch_invariant": True}),
        (gpt2(), {"replaces_layers": True, "batch_invariant": True}),
    ],
    ids=["faster layers", "longrope", "batch-invariant", "batch-invariant GPT-2"],
)
def test_patches_are_undone(model: PreTrainedModel, options: dict[str, Any]) -> None:
    lengths = (5, 20)  # on both sides of the switch
    expected = [logits(model, length) for length in lengths]
    before = state(model)
    patches = apply_patches(model, **options)
    assert {patch.module for patch in patches} == {
        name for (name, cls, _), (_, now, _) in zip(before, state(model), strict=False) if cls is not now
    } or "rotary_switch" in options
    if "rotary_switch" not in options:  # which takes encoded positions
        for length, own in zip(lengths, expected, strict=True):
            torch.testing.assert_close(logits(model, length), own, rtol=1e-5, atol=1e-5)
    undo_patches(patches)
    assert state(model) == before
    assert all(torch.equal(logits(model, length), own) for length, own in zip(lengths, expected, strict=True))


def test_fused_layers_run_as_linear_layers_once_patches_are_undone() -> None:
    model = llama()
    expected = logits(model, 5)
    patches = apply_patches(model, replaces_layers=True)
    fuse_shared_input_linears(model, lambda: logits(model, 1))
    patches += apply_patches(model, batch_invariant=True)
    undo_patches(patches)
    torch.testing.assert_close(logits(model, 5), expected)
    assert {type(module) for module in model.modules() if isinstance(module, nn.Linear)} == {nn.Linear}


def test_replaced_modules_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="gradellm_engine"):
        apply_patches(llama(), replaces_layers=True)
    assert "LlamaForCausalLM: 5 x LlamaRMSNorm now runs as FrozenLlamaRMSNorm" in caplog.messages
    assert "LlamaForCausalLM: 2 x LlamaAttention now runs as FusedRotaryLlamaAttention" in caplog.messages


def test_nothing_is_replaced_by_default() -> None:
    model = llama()
    before = state(model)
    assert apply_patches(model) == []
    assert state(model) == before
