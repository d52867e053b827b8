"""A linear layer whose weights never change: computed where it is fastest, and not twice for the same token.

A decode step multiplies one row a stream by every weight, so that its speed is that of reading them.

- oneDNN. The library behind PyTorch's float32 products on x86 processors reaches about half of that speed for few rows
  on some of them; oneDNN, which PyTorch carries too and uses for other types, gets closer. Below some hundred thousand
  weights its greater overhead a call weighs more.
- Known outputs. A token that is read once more, to be explained, gives every layer the input that it gave it the first
  time. What the layer made of it is at hand then (`gradellm_engine.products`): only the backward pass reads weights.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor, nn

MIN_WEIGHTS = 2**19  # measured: 256 x 768 is slower through oneDNN, 768 x 768 is faster


class Outputs(Protocol):
    """What layers give in a pass."""

    def known(self, layer: nn.Module) -> Tensor | None:
        """What this one gives, where that is known. [1, T, out]"""

    def note(self, layer: nn.Module, output: Tensor) -> None:
        """It has given this. [1, T, out]"""


current_outputs: ContextVar[Outputs | None] = ContextVar("gradellm_outputs", default=None)


def has_onednn() -> bool:
    """Whether PyTorch was built with it, and still calls its product what we call it."""
    is_built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return is_built and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def freeze_linears(model: nn.Module) -> None:
    """Make every plain linear layer of `model` a `FrozenLinear`.

    Not those with a product of their own: subclasses of layers and of tensors, such as quantised ones, and what was
    given a forward of its own, as by accelerate's placement.
    """
    uses_onednn = has_onednn() and torch.backends.mkldnn.enabled
    for module in model.modules():
        if type(module) is nn.Linear and type(module.weight) is nn.Parameter and "forward" not in vars(module):
            module.__class__ = FrozenLinear
            module.uses_onednn = uses_onednn and _is_large(module.weight)  # type: ignore[assignment]


def _is_large(weight: Tensor) -> bool:
    is_plain = weight.device.type == "cpu" and weight.dtype == torch.float32
    return is_plain and weight.numel() >= MIN_WEIGHTS


class FrozenLinear(nn.Linear):
    """`nn.Linear` with frozen weights.

    Attributes:
        uses_onednn: whether oneDNN computes it.
    """

    uses_onednn: bool

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (as in nn.Linear)
        """[.., in] -> [.., out]"""
        outputs = current_outputs.get()
        known = None if outputs is None else outputs.known(self)
        if known is not None and known.shape[:-1] != input.shape[:-1]:
            known = None
        output: Tensor
        if input.requires_grad and torch.is_grad_enabled():
            output = _Product.apply(input, self, known)  # type: ignore[no-untyped-call]
        else:
            output = self.product(input) if known is None else known
        if outputs is not None:
            outputs.note(self, output)
        return output

    def product(self, x: Tensor) -> Tensor:
        """The layer: x W^T + b. [.., in] -> [.., out]"""
        return (
            _onednn(x, self.weight, self.bias) if self.uses_onednn else nn.functional.linear(x, self.weight, self.bias)
        )

    def gradient(self, g: Tensor) -> Tensor:
        """By its input: g W. [.., out] -> [.., in]"""
        return _onednn(g, self.weight.t(), None) if self.uses_onednn else g @ self.weight


class _Product(torch.autograd.Function):
    """The layer as a node of the graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear, known: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.layer = layer
        return layer.product(x) if known is None else known

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        layer: FrozenLinear = ctx.layer
        return layer.gradient(gradients[0]), None, None


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product x W^T + b. [.., in], [out, in], [out] -> [.., out]"""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result
