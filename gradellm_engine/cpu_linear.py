"""A linear layer by oneDNN, which few rows of float32 take faster through it than through PyTorch's default.

A decode step multiplies one row a stream by every weight, so that its speed is that of reading them. The library behind
PyTorch's float32 products on x86 processors reaches about half of that for few rows on some of them; oneDNN, which
PyTorch carries too and uses for other types, gets closer. Below some hundred thousand weights its greater overhead a
call weighs more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MIN_WEIGHTS = 2**19  # measured: 256 x 768 is slower through oneDNN, 768 x 768 is faster


def has_onednn() -> bool:
    """Whether PyTorch was built with it, and still calls its product what we call it."""
    is_built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return is_built and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def use_onednn(model: nn.Module) -> None:
    """Have the large float32 linear layers of `model` that lie in main memory computed by oneDNN.

    Does nothing where PyTorch was built without it or it is switched off (torch.backends.mkldnn.flags).
    """
    if not (has_onednn() and torch.backends.mkldnn.enabled):
        return
    for module in model.modules():
        # Subclasses of layers and of tensors, such as quantised ones, have a product of their own; so has what was
        # given a forward of its own, as by accelerate's placement.
        if type(module) is nn.Linear and _is_large(module.weight) and "forward" not in vars(module):
            module.__class__ = OneDnnLinear


def _is_large(weight: Tensor) -> bool:
    is_plain = type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.dtype == torch.float32
    return is_plain and weight.numel() >= MIN_WEIGHTS


class OneDnnLinear(nn.Linear):
    """`nn.Linear` with frozen weights."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (as in nn.Linear)
        """[.., in] -> [.., out]"""
        if input.requires_grad and torch.is_grad_enabled():
            product: Tensor = _Product.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return product
        return _product(input, self.weight, self.bias)


class _Product(torch.autograd.Function):
    """x W^T + b, and the gradient by x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.weight = weight
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        return _product(gradients[0], ctx.weight.t(), None), None, None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer: x W^T + b. [.., in], [out, in], [out] -> [.., out]"""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result
