"""The rotary embedding of queries and keys as one node of the graph.

It multiplies each pair of channels with s (cos, sin): so its backward pass is itself with (cos, -sin), whatever the
pairing, the width or the scaling s. Autograd makes fourteen nodes a layer of it.

Transformers' attention modules find it by its name, beside them. There it is replaced, for all models of the family in
this process, by one that computes the same.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gradellm_engine.layers.rotary_rows import rotated, rotates_halves, supports_row_layout

NAME = "apply_rotary_pos_emb"
Rotate = Callable[..., tuple[Tensor, Tensor]]


def replace_rotary(model: nn.Module) -> None:
    """Make the rotary embedding of `model` one node."""
    for place in {type(module).__module__ for module in model.modules()}:
        names = vars(sys.modules[place])
        rotate = names.get(NAME)
        if rotate is not None and not hasattr(rotate, "is_one_node"):
            names[NAME] = fused_autograd_node(rotate)


def fused_autograd_node(rotate: Rotate) -> Rotate:
    """The same function of queries, keys, cosines and sines, with a backward pass of its own."""
    has_rows = rotates_halves(rotate)

    @functools.wraps(rotate)
    def rotates(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        if args or kwargs or not _is_plain(q, k, cos, sin):
            if not torch.is_grad_enabled() and not any(q.stride()):  # one number, that nobody looks at: left_out
                return q, k if not any(k.stride()) else rotates(k, k, cos, sin, *args, **kwargs)[1]
            if has_rows and not (args or kwargs) and _is_inference() and supports_row_layout(q, k, cos, sin):
                return rotated(q, cos, sin), rotated(k, cos, sin)
            return rotate(q, k, cos, sin, *args, **kwargs)
        both: tuple[Tensor, Tensor] = _Rotated.apply(q, k, cos, sin, rotate)  # type: ignore[no-untyped-call]
        return both

    rotates.is_one_node = True  # type: ignore[attr-defined]
    return rotates


def _is_plain(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether gradients are wanted of queries and keys alone, by an ordinary backward pass.

    In float64 autograd is left to it, and rounds as it does: some families rotate in float32 there, too.
    """
    if not (q.requires_grad and k.requires_grad and torch.is_grad_enabled()) or q.dtype is torch.float64:
        return False
    return _is_ordinary() and not (cos.requires_grad or sin.requires_grad)


def _is_inference() -> bool:
    """Whether nobody differentiates, traces or maps it."""
    return not torch.is_grad_enabled() and _is_ordinary()


def _is_ordinary() -> bool:
    """Whether nobody traces or maps it."""
    return not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


class _Rotated(torch.autograd.Function):
    """Queries and keys, rotated."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        q: Tensor,
        k: Tensor,
        cos: Tensor,
        sin: Tensor,
        rotate: Rotate,
    ) -> tuple[Tensor, Tensor]:
        ctx.rotate = rotate
        ctx.save_for_backward(cos, sin)
        return rotate(q, k, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        cos, sin = ctx.saved_tensors
        return *ctx.rotate(*gradients, cos, -sin), None, None, None
