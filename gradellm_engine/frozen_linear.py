"""A linear layer whose weights never change: computed where it is fastest, and not twice for the same token.

A decode step multiplies one row a stream by every weight, so that its speed is that of reading them.

- oneDNN. The library behind PyTorch's float32 products on x86 processors reaches about half of that speed for few rows
  on some of them, for several rows at less; oneDNN, which PyTorch carries too and uses for other types, gets closer.
  Below some hundred thousand weights its greater overhead a call weighs more.
- Known outputs. A token that is read once more, to be explained, gives every layer the input that it gave it the first
  time. What the layer made of it is at hand then (`gradellm_engine.products`): only the backward pass reads weights.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor, nn

# Measured: 256 x 768 is slower through oneDNN; 768 x 768 is as fast for one row, faster for more; 768 x 2048 is faster.
MIN_WEIGHTS, MIN_WEIGHTS_OF_ONE_ROW = 2**19, 2**20
MOST_ROWS = 64  # beyond it torch's default is as fast


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
            module.onednn_rows = _onednn_rows(module.weight) if uses_onednn else None  # type: ignore[assignment]
            # Attributes of modules that are no parameters are found at once.
            module.transposed = module.weight.detach().t()


def _onednn_rows(weight: Tensor) -> int | None:
    """How many rows oneDNN multiplies faster than torch's default, at least; None for no number."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or weight.numel() < MIN_WEIGHTS:
        return None
    return 1 if weight.numel() >= MIN_WEIGHTS_OF_ONE_ROW else 2


class FrozenLinear(nn.Linear):
    """`nn.Linear` with frozen weights.

    Attributes:
        onednn_rows: from so many rows on oneDNN computes it, up to MOST_ROWS; None for never.
        transposed: the weight's transpose, of the same memory. [in, out]
    """

    onednn_rows: int | None
    transposed: Tensor

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (as in nn.Linear)
        """[.., in] -> [.., out]"""
        outputs = current_outputs.get()
        known = None if outputs is None else outputs.known(self)
        if known is not None and known.shape[:-1] != input.shape[:-1]:
            known = None
        output: Tensor
        if known is None and not self._uses_onednn(input):
            output = self.product(input)  # torch's own node costs less than ours
        elif input.requires_grad and torch.is_grad_enabled():
            output = _Product.apply(input, self, known)  # type: ignore[no-untyped-call]
        else:
            output = self.product(input) if known is None else known
        if outputs is not None:
            outputs.note(self, output)
        return output

    def product(self, x: Tensor) -> Tensor:
        """The layer: x W^T + b. [.., in] -> [.., out]"""
        if self._uses_onednn(x):
            return _onednn(x, self.weight, self.bias)
        return nn.functional.linear(x, self.weight, self.bias)

    def gradient(self, g: Tensor) -> Tensor:
        """By its input: g W. [.., out] -> [.., in]"""
        is_batch = torch._C._functorch.is_batchedtensor(g)  # of torch.func.vmap, which oneDNN knows nothing of
        return _onednn(g, self.transposed, None) if self._uses_onednn(g) and not is_batch else g @ self.transposed.t()

    def _uses_onednn(self, rows: Tensor) -> bool:
        if self.onednn_rows is None:
            return False
        return self.onednn_rows <= rows.numel() // rows.shape[-1] <= MOST_ROWS


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
    result: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return result
