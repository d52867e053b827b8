"""Gradients of activations and gates by the rules of relevance, for all tokens or some; values that stay the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from gradellm_engine.layers.gated_mlp import FrozenGatedMLP
from gradellm_engine.layers.patches import add_relevance_rules
from gradellm_engine.layers.relevance_rules import RelevanceRules, Rows, halved, is_activation, proportional

ACTIVATIONS = ("silu", "gelu", "gelu_new", "relu", "gelu_pytorch_tanh")
T, WIDTH = 4, 6


def normal(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(1, T, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class GatedMLP(nn.Module):
    def __init__(self, activation: str) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.act_fn = ACT2FN[activation]
        self.double().requires_grad_(requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return y


def gradient_of(module: nn.Module, x: Tensor, by_y: Tensor) -> tuple[Tensor, Tensor]:
    """The output and the gradient by the input."""
    x = x.detach().requires_grad_()
    y = module(x)
    return y.detach(), torch.autograd.grad(y, x, by_y)[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_stay_the_same_to_the_last_bit(activation: str, dtype: torch.dtype) -> None:
    x = 10 * torch.randn(4000, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = torch.cat((x, 1e-5 * x))  # subnormal numbers of float16 among them
    x = torch.cat((x, torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e4, -1e4]).to(dtype)))
    y = ACT2FN[activation](x)
    assert torch.equal(proportional(x, y), y)
    assert torch.equal(halved(x), x)


@pytest.mark.parametrize("rows", [True, torch.tensor([True, False, False, True])])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_of_a_gated_block(activation: str, rows: Rows) -> None:
    """By hand in the rows that have the rules, autograd's in the others."""
    mlp, rules = GatedMLP(activation), RelevanceRules()
    x, by_y = normal(1), normal(2)
    plain, true = gradient_of(mlp, x, by_y)
    add_relevance_rules(mlp, rules, ("gate_proj", "up_proj"))
    with rules.during(rows):
        y, found = gradient_of(mlp, x, by_y)
    gate, up, below = mlp.gate_proj(x), mlp.up_proj(x), by_y @ mlp.down_proj.weight
    a = mlp.act_fn(gate)
    expected = (below * up * a / gate / 2) @ mlp.gate_proj.weight + (below * a / 2) @ mlp.up_proj.weight
    assert torch.equal(y, plain)
    assert torch.allclose(found, torch.where(torch.as_tensor(rows)[..., None], expected, true), rtol=1e-9, atol=1e-12)
    assert torch.equal(gradient_of(mlp, x, by_y)[1], true)  # after the pass


def test_a_block_without_a_gate_has_a_constant_slope() -> None:
    block, rules = nn.Sequential(nn.Linear(WIDTH, WIDTH), ACT2FN["gelu_new"]).double(), RelevanceRules()
    add_relevance_rules(block, rules, ())
    x, by_y = normal(1), normal(2)
    with rules.during(rows=True):
        y, found = gradient_of(block, x, by_y)
    assert torch.allclose(found, (by_y * y / block[0](x)) @ block[0].weight)


def test_a_gated_mlp_with_kernels_of_its_own_has_no_hooks() -> None:
    mlp: Any = GatedMLP("silu")
    rules = RelevanceRules()
    mlp.__class__ = type("Frozen", (FrozenGatedMLP, GatedMLP), {})
    add_relevance_rules(mlp, rules, ("gate_proj", "up_proj"))
    assert not any(module._forward_hooks for module in mlp.modules())
    assert mlp.relevance_rules is rules
    x, by_y = normal(1), normal(2)
    with rules.during(rows=True):  # in float64, which the kernels do not compute
        y, found = gradient_of(mlp, x, by_y)
    other = GatedMLP("silu")
    other.load_state_dict(mlp.state_dict())
    other_rules = RelevanceRules()
    add_relevance_rules(other, other_rules, ("gate_proj", "up_proj"))
    with other_rules.during(rows=True):
        expected_y, expected = gradient_of(other, x, by_y)
    assert torch.equal(y, expected_y)
    assert torch.allclose(found, expected)


def test_without_a_graph_there_are_no_rules() -> None:
    rules = RelevanceRules()
    with rules.during(rows=True):
        assert rules.apply
        with torch.no_grad():
            assert not rules.apply
    assert not rules.apply


def test_activations_are_recognised() -> None:
    assert all(is_activation(ACT2FN[name]) for name in ACTIVATIONS)
    assert not is_activation(nn.Linear(2, 2))
    assert not is_activation(nn.Dropout())
