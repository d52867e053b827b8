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

NAME = "apply_rotary_pos_emb"
MIN_NUMBERS = 2**14  # of queries and keys; below it, calls cost more than what they do

_A_MOVE = 4  # numbers of float32 in the widest type; narrow heads are moved three times faster by it

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
        if args or kwargs or not _takes_fused_node(q, k, cos, sin):
            if not torch.is_grad_enabled() and not any(q.stride()):  # one number, that nobody looks at: left_out
                return q, k if not any(k.stride()) else rotates(k, k, cos, sin, *args, **kwargs)[1]
            if has_rows and not (args or kwargs) and _is_inference() and supports_row_layout(q, k, cos, sin):
                return rotated(q, cos, sin), rotated(k, cos, sin)
            return rotate(q, k, cos, sin, *args, **kwargs)
        both: tuple[Tensor, Tensor] = _Rotated.apply(q, k, cos, sin, rotate)  # type: ignore[no-untyped-call]
        return both

    rotates.is_one_node = True  # type: ignore[attr-defined]
    return rotates


def _takes_fused_node(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether gradients are wanted of queries and keys alone, by an ordinary backward pass.

    In float64 autograd is left to it, and rounds as it does: some families rotate in float32 there, too.
    """
    if not (q.requires_grad and k.requires_grad and torch.is_grad_enabled()) or q.dtype is torch.float64:
        return False
    return _no_functorch_or_compile() and not (cos.requires_grad or sin.requires_grad)


def _is_inference() -> bool:
    """Whether nobody differentiates, traces or maps it."""
    return not torch.is_grad_enabled() and _no_functorch_or_compile()


def _no_functorch_or_compile() -> bool:
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


def rotates_halves(rotate: Callable[..., tuple[Tensor, Tensor]]) -> bool:
    """Whether a family's function computes just that, where a head is as wide as its cosines."""
    drawn = torch.randn((4, 2, 3, 8), generator=torch.Generator().manual_seed(0))
    q, k = drawn[0][None], drawn[1][None]  # [1, 2, 3, 8]
    cos, sin = drawn[2, :1], drawn[3, :1]
    try:
        found = rotate(q, k, cos, sin)
    except (TypeError, ValueError, RuntimeError, IndexError):  # it wants to know more, or is of other shapes
        return False
    return all(torch.equal(ours, rotated(x, cos, sin)) for ours, x in zip(found, (q, k), strict=True))


def supports_row_layout(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether it pays, and queries and keys lie in memory as projections leave them. [B, H, T, D], [1, T, D]"""
    is_one_table = cos.dim() == 3 and cos.shape == sin.shape and cos.shape[0] == 1 and cos.shape[-1] == q.shape[-1]
    if not is_one_table or q.dim() != 4 or q.numel() < MIN_NUMBERS or cos.shape[1] != q.shape[2]:
        return False
    same = all(x.dtype is torch.float32 and x.device.type == "cpu" for x in (q, k, cos, sin))
    return same and k.shape[-1] == q.shape[-1] and all(x.transpose(1, 2).is_contiguous() for x in (q, k))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys, rotated. [B, H, T, D], [1, T, D] twice -> [B, H, T, D]"""
    B, H, T, D = x.shape
    rows, half = x.transpose(1, 2), D // 2
    signed = torch.cat((-sin[..., :half], sin[..., half:]), -1)
    other = _halves_swapped(rows).reshape(B, T, H * D).mul_(signed.repeat(1, 1, H))
    return (rows.reshape(B, T, H * D) * cos.repeat(1, 1, H)).add_(other).view(B, T, H, D).transpose(1, 2)


def _halves_swapped(rows: Tensor) -> Tensor:
    """(a, b) becomes (b, a). [.., D]"""
    half = rows.shape[-1] // 2
    if half % _A_MOVE == 0 and rows.is_contiguous() and rows.storage_offset() % _A_MOVE == 0:
        return rows.view(torch.complex128).roll(half // _A_MOVE, -1).view(torch.float32)
    return rows.roll(half, -1)


def unrotated(module: nn.Module, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Queries or keys of an attention module before the rotary embedding, by the family's own run backwards.

    A rotary embedding multiplies each pair of channels with s (cos, sin): the inverse is (cos, -sin) / (cos^2 + sin^2),
    whatever the pairing, the width or the scaling s.

    Args:
        module: the layer's attention.
        x: [B, heads, tokens, D]
        cosines: of the tokens. [tokens, width] or [B, tokens, width]
        sines: likewise.
    """
    rotate = vars(sys.modules[type(module).__module__])["apply_rotary_pos_emb"]
    cos, sin = (c.to(x.device, x.dtype).view(-1, *c.shape[-2:]) for c in (cosines, sines))
    norm = cos.square() + sin.square()
    width = getattr(module, "rotary_ndims", x.shape[-1])  # some modules cut off the part that is not rotated themselves
    result: Tensor = rotate(x[..., :width], x[..., :width], cos / norm, -sin / norm)[0]
    return torch.cat((result, x[..., width:]), -1)
