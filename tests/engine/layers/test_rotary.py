"""The rotary embedding as one node and by rows, against the families' own functions; which models are patched."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

from gradellm_engine.layers import rotary
from gradellm_engine.layers.patches import undo_patches
from gradellm_engine.layers.rotary import (
    NAME,
    Rotate,
    _Rotated,
    fused_autograd_node,
    replace_rotary,
    rotary_function,
    rotated,
    rotates_halves,
    supports_row_layout,
)

Normal = Callable[..., Tensor]
Shape = tuple[int, int, int, int, int]  # texts, tokens, query heads, key heads, width
# Halves rotated, neighbours rotated, a part of the width alone, and cosines of half the width.
FAMILIES = ["llama", "cohere", "glm", "gpt_oss"]
WIDTH, TOKENS = 16, 3


def function_of(family: str) -> tuple[Rotate, Tensor, Tensor]:
    """The family's function, with cosines and sines of some tokens."""
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    rotate = getattr(module, NAME)
    angles = torch.linspace(0, 3, TOKENS * WIDTH // 2).view(1, TOKENS, -1)
    if family == "cohere":
        angles = angles.repeat_interleave(2, -1)
    elif family != "gpt_oss":
        angles = torch.cat((angles, angles), -1)
    if family == "glm":
        angles = angles[..., : WIDTH // 2]
    return getattr(rotate, "__wrapped__", rotate), 1.5 * angles.cos(), 1.5 * angles.sin()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_autograds(normal: Normal, family: str) -> None:
    rotate, cos, sin = function_of(family)
    q, k = normal(0, 1, 4, TOKENS, WIDTH).float(), normal(1, 1, 2, TOKENS, WIDTH).float()
    gradients = [normal(2 + i, *x.shape).float() for i, x in enumerate((q, k))]

    def results(function: Rotate) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        leaves = [x.clone().requires_grad_() for x in (q, k)]
        outputs = function(*leaves, cos, sin)
        return outputs, torch.autograd.grad(outputs, leaves, gradients)

    fused, original = results(fused_autograd_node(rotate)), results(rotate)
    assert fused[0][0].grad_fn is not None
    assert fused[0][0].grad_fn.name() == "_RotatedBackward"
    torch.testing.assert_close(fused[0], original[0], rtol=0, atol=0)
    torch.testing.assert_close(fused[1], original[1])


def test_all_else_is_left_to_autograd(normal: Normal) -> None:
    rotate, cos, sin = function_of("llama")
    fused = fused_autograd_node(rotate)
    q, k = normal(0, 1, 4, TOKENS, WIDTH).float(), normal(1, 1, 2, TOKENS, WIDTH).float()
    leaf = q.clone().requires_grad_()

    def is_ours(*args: Tensor, **kwargs: int) -> bool:
        grad_fn = fused(*args, **kwargs)[0].grad_fn
        return grad_fn is not None and grad_fn.name() == "_RotatedBackward"

    assert is_ours(leaf, leaf, cos, sin)
    assert not is_ours(q, k, cos, sin)
    assert not is_ours(leaf, k, cos, sin)
    assert not is_ours(leaf, leaf, cos.clone().requires_grad_(), sin)
    assert not is_ours(leaf, leaf, cos, sin, unsqueeze_dim=1)
    assert not is_ours(leaf.double(), leaf.double(), cos, sin)
    tangents = tuple(torch.func.jvp(f, (q, k, cos, sin), (k[:, :1].expand_as(q), k, cos, sin)) for f in (fused, rotate))
    torch.testing.assert_close(*tangents)


def tiny_llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which rotary function ran in the last pass: of Transformers, or one node of ours around it."""
    calls: list[str] = []
    fused: Any = _Rotated.apply

    def watched(*args: Any) -> Any:
        calls.append("ours")
        return fused(*args)

    monkeypatch.setattr(_Rotated, "apply", watched)
    return calls


def run_with_graph(model: Any) -> Tensor:
    embeddings = model.get_input_embeddings()(torch.arange(6)[None]).detach().requires_grad_()
    logits: Tensor = model(inputs_embeds=embeddings, use_cache=False).logits
    return logits


def test_only_the_patched_model_gets_our_function(called: list[str]) -> None:
    """Another model of the family in the process, made before or after, runs Transformers' own."""
    modeling = sys.modules[LlamaForCausalLM.__module__]
    own, forward = getattr(modeling, NAME), LlamaAttention.forward
    earlier, patched = tiny_llama(), tiny_llama()
    expected = run_with_graph(earlier)
    patches = replace_rotary(patched)
    assert [patch.module for patch in patches] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    assert not called
    assert torch.equal(run_with_graph(patched), expected)
    assert called == ["ours"] * 2
    called.clear()
    for other in (earlier, tiny_llama()):
        assert torch.equal(run_with_graph(other), expected)
        assert type(other.model.layers[0].self_attn) is LlamaAttention
    assert not called
    assert getattr(modeling, NAME) is own
    assert LlamaAttention.forward is forward


def test_undone_patches_restore_the_model(called: list[str]) -> None:
    model = tiny_llama()
    undo_patches(replace_rotary(model))
    run_with_graph(model)
    assert not called
    assert type(model.model.layers[0].self_attn) is LlamaAttention


def test_a_model_is_patched_once() -> None:
    model = tiny_llama()
    assert replace_rotary(model)
    assert not replace_rotary(model)


def test_a_forward_that_accelerate_has_wrapped_is_patched_too(called: list[str]) -> None:
    model = tiny_llama()
    for layer in model.model.layers:
        add_hook_to_module(layer.self_attn, ModelHook())
    expected = run_with_graph(model)
    patches = replace_rotary(model)
    assert torch.equal(run_with_graph(model), expected)
    assert called == ["ours"] * 2
    called.clear()
    undo_patches(patches)
    assert torch.equal(run_with_graph(model), expected)
    assert not called


def test_the_inverse_uses_the_function_that_the_module_calls() -> None:
    model = tiny_llama()
    attention = model.model.layers[0].self_attn
    own = rotary_function(attention)
    replace_rotary(model)
    assert vars(rotary_function(attention))["__wrapped__"] is own


def own_function(family: str) -> Rotate:
    rotate = getattr(importlib.import_module(f"transformers.models.{family}.modeling_{family}"), NAME)
    unwrapped: Rotate = getattr(rotate, "__wrapped__", rotate)
    return unwrapped


def drawn(shape: Shape) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, T, H, G, D = shape
    torch.manual_seed(0)
    q, k = (torch.randn(B, T, heads, D).transpose(1, 2) for heads in (H, G))
    return q, k, torch.randn(1, T, D), torch.randn(1, T, D)


@pytest.mark.parametrize(
    ("family", "expected"), [("llama", True), ("qwen3", True), ("cohere", False), ("glm", False), ("gpt_oss", False)]
)
def test_which_families_rotate_halves(family: str, expected: bool) -> None:
    assert rotates_halves(own_function(family)) is expected


def test_a_function_with_more_arguments_does_not_rotate_halves() -> None:
    assert not rotates_halves(lambda q, k, cos, sin, section: (q, k))


@pytest.mark.parametrize(
    "shape", [(2, 5, 4, 2, 8), (3, 7, 2, 2, 4), (1, 50, 8, 4, 32), (2, 3, 3, 1, 6), (4, 1, 2, 1, 64)]
)
def test_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch, shape: Shape) -> None:
    monkeypatch.setattr(rotary, "MIN_NUMBERS", 1)
    q, k, cos, sin = drawn(shape)
    assert supports_row_layout(q, k, cos, sin)
    rotate = own_function("llama")
    with torch.no_grad():
        fused, original = fused_autograd_node(rotate)(q, k, cos, sin), rotate(q, k, cos, sin)
    assert all(torch.equal(*pair) for pair in zip(fused, original, strict=True))
    assert torch.equal(rotated(q, cos, sin), original[0])


def test_all_else_is_left_to_the_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotary, "MIN_NUMBERS", 1)
    q, k, cos, sin = drawn((2, 5, 4, 2, 8))
    assert not supports_row_layout(q.contiguous(), k, cos, sin)
    assert not supports_row_layout(q.double(), k.double(), cos.double(), sin.double())
    assert not supports_row_layout(q, k, cos.repeat(2, 1, 1), sin.repeat(2, 1, 1))
    assert not supports_row_layout(q, k, cos[..., :4], sin[..., :4])
    monkeypatch.setattr(rotary, "MIN_NUMBERS", q.numel() + 1)
    assert not supports_row_layout(q, k, cos, sin)
