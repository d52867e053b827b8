"""The rotary embedding of many tokens at once, by rows of all heads.

A head's halves are rotated together: (a, b) becomes (a cos - b sin, b cos + a sin). Transformers computes that head by
head, in seven passes over memory, whose inner loops are half a head long. Here a token's heads lie behind one another
and so do its cosines, as many times: four passes, with inner loops as long as a sequence. Every number comes of the
same products and the same sum, so it is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MIN_NUMBERS = 2**14  # of queries and keys; below it, calls cost more than what they do
_A_MOVE = 4  # numbers of float32 in the widest type; narrow heads are moved three times faster by it


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
