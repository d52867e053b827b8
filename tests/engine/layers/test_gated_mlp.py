"""MLPs that are replaced, and those that are not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, LlamaConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2MLP
from transformers.models.llama.modeling_llama import LlamaMLP

from gradellm_engine.layers.gated_mlp import FrozenGatedMLP, replace_gated_mlps

pytest.importorskip("numba")
SIZES = {"hidden_size": 12, "intermediate_size": 40, "num_attention_heads": 2, "num_key_value_heads": 1}


def llama_mlp(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return LlamaMLP(LlamaConfig(**SIZES)).requires_grad_(False).to(dtype)


class Clipped(LlamaMLP):  # type: ignore[misc]
    """An MLP with the same parts and another function."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-0.1, 0.1)


def test_outputs_and_gradients_are_the_same() -> None:
    mlp = llama_mlp()
    frozen = copy.deepcopy(mlp)
    (patch,) = replace_gated_mlps(frozen)
    assert isinstance(frozen, FrozenGatedMLP)
    leaf = torch.randn(1, 7, 12, requires_grad=True)
    gradient = torch.randn(1, 7, 12)
    output, expected = frozen(leaf), mlp(leaf)
    torch.testing.assert_close(output, expected)
    assert torch.equal(frozen(leaf.detach()), output)
    (actual,) = torch.autograd.grad(output, leaf, gradient)
    torch.testing.assert_close(actual, *torch.autograd.grad(expected, leaf, gradient))
    patch.undo()
    assert type(frozen) is LlamaMLP


def test_hooks_of_the_activation_are_called() -> None:
    """Methods put their rules of propagation there."""
    mlp = llama_mlp()
    replace_gated_mlps(mlp)
    x, before = torch.randn(1, 2, 12), mlp(torch.zeros(1, 2, 12))
    handle = mlp.get_submodule("act_fn").register_forward_hook(lambda module, args, output: 0 * output)
    assert torch.equal(mlp(x), before)
    handle.remove()
    assert not torch.equal(mlp(x), before)


def test_the_gradient_can_be_differentiated() -> None:
    mlp = llama_mlp()
    replace_gated_mlps(mlp)
    x = torch.randn(1, 2, 12, requires_grad=True)

    def second(module: nn.Module) -> Tensor:
        (first,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
        (again,) = torch.autograd.grad(first.pow(2).sum(), x)
        return again

    torch.testing.assert_close(second(mlp), second(llama_mlp()))


@pytest.mark.parametrize(
    "module",
    [
        Clipped(LlamaConfig(**SIZES)),
        Gemma2MLP(Gemma2Config(**SIZES)),  # tanh's approximation of GELU
        llama_mlp(torch.bfloat16),
        nn.Linear(3, 3),
    ],
    ids=lambda module: type(module).__name__,
)
def test_other_modules_stay(module: nn.Module) -> None:
    assert replace_gated_mlps(module) == []


def test_a_module_with_a_forward_of_its_own_stays() -> None:
    mlp = llama_mlp()
    mlp.forward = mlp.forward  # as accelerate's placement leaves it
    assert replace_gated_mlps(mlp) == []
