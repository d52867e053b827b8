"""MLPs whose activation is SiLU(gate) up, as one operation forward and one backward, by kernels for CPUs.

    forward    y = W_down (a * u),  a = g sigmoid(g)       g = W_gate x, u = W_up x
    backward   of a * u by g and u, from the gradient by it; or by the rules of relevance

Transformers computes three operations on the widest rows of a layer, and autograd five more.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from gradellm_engine.cpu_kernels.dispatch import kernels_for
from gradellm_engine.layers.linear import FrozenLinear
from gradellm_engine.layers.module_patch import Patch, mix_in_class
from gradellm_engine.layers.relevance_rules import RelevanceRules, Rows, chosen, halved, proportional
from gradellm_engine.utils.torch_compat import has_forward_hooks

_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def replace_gated_mlps(model: nn.Module) -> list[Patch]:
    """Make every MLP of `model` that computes `FrozenGatedMLP.forward`, to the last bit, one.

    Modules with a `forward` of their own, as accelerate's placement gives them, stay as they are.
    """
    return [
        mix_in_class(name, module, FrozenGatedMLP, "Frozen")
        for name, module in model.named_modules()
        if _is_gated_mlp(module)
    ]


@torch.no_grad()
def _is_gated_mlp(module: nn.Module) -> bool:
    """Whether a module is a gated MLP; found by comparing its output."""
    layers = [layer for layer in map(dict(module.named_children()).get, _PROJECTIONS) if isinstance(layer, nn.Linear)]
    if len(layers) != len(_PROJECTIONS) or "forward" in vars(module):
        return False
    gate, up, down = layers
    x = torch.randn((2, gate.in_features), generator=torch.Generator().manual_seed(0))[None]
    takes_float32 = gate.weight.dtype is torch.float32 or (type(gate) is FrozenLinear and gate.gemm_weight.is_widened)
    if len(list(module.children())) != 4 or not takes_float32:  # the fourth is the activation
        return False
    if gate.weight.device.type != "cpu" or kernels_for(x) is None:
        return False
    return torch.equal(module(x), down(nn.functional.silu(gate(x)) * up(x)))


class FrozenGatedMLP(nn.Module):
    """Mixin for gated MLPs with frozen weights.

    Attributes:
        relevance_rules: those of the pass that runs.
    """

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear
    act_fn: nn.Module
    relevance_rules = RelevanceRules()

    def forward(self, x: Tensor) -> Tensor:
        """[.., hidden] -> [.., hidden]"""
        gate, up = self.gate_proj(x), self.up_proj(x)
        rows = self.relevance_rules.rows
        # Rules of propagation, such as DeepLIFT's, are hooks of the activation.
        kernels = None if has_forward_hooks(self.act_fn) else kernels_for(gate, up)
        if kernels is None and self.relevance_rules.apply:
            gate, up = halved(gate, rows), halved(up, rows)
            gated = proportional(gate, self.act_fn(gate), rows) * up
        elif kernels is None:
            gated = self.act_fn(gate) * up
        elif gate.requires_grad and torch.is_grad_enabled():
            gated = _Gated.apply(gate, up, kernels, rows)  # type: ignore[no-untyped-call]
        else:
            gated = kernels.silu_mul_op(gate, up)
        output: Tensor = self.down_proj(gated)
        return output


class _Gated(torch.autograd.Function):
    """The activation as a node of the graph; with the rules of relevance in `rows`."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, kernels: ModuleType, rows: Rows) -> Tensor:  # noqa: ANN401
        ctx.kernels, ctx.rows = kernels, rows
        ctx.save_for_backward(gate, up)
        gated: Tensor = kernels.silu_mul_op(gate, up)
        return gated

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:  # noqa: ANN401
        gate, up = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives
            sigmoid = torch.sigmoid(gate)
            by_gate = gradients[0] * up * sigmoid * (1 + gate * (1 - sigmoid))
            return by_gate, gradients[0] * gate * sigmoid, None, None
        backward, rows = ctx.kernels.silu_mul_backward_op, ctx.rows
        by_gate, by_up = backward(gate, up, gradients[0], propagates_relevance=rows is True)
        if not isinstance(rows, bool):
            relevance = backward(gate, up, gradients[0], propagates_relevance=True)
            by_gate, by_up = (chosen(rows, *both) for both in zip(relevance, (by_gate, by_up), strict=True))
        return by_gate, by_up, None, None
