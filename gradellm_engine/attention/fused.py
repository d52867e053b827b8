"""Attention of a few new tokens of each sequence on a GPU: forward and backward, each one pass over keys and values.

`gradellm_engine.attention.ops` says what is computed; this computes the same where the time of a decode step is that of
reading memory. Written as one operation after the other, a step copies every sequence's keys and values out of the pool
and reads them seven times, half of them in float32. The kernels here read each twice, from where they lie: once
forward, once backward, where products, gradients and the maps that scores are made of are all at hand.

What each program finds of its share of the keys is put together by a second, small kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from gradellm_engine.attention.ops import AttentionForm
from gradellm_engine.attention.triton_kernels import (
    backward_kernel,
    forward_kernel,
    join_backward_kernel,
    join_forward_kernel,
)
from gradellm_engine.kv_cache.pool import Sequences
from gradellm_engine.params import GradEllm, LayerSwitches, Loosening, Magnitude, Rotary, Similarity

_BLOCK = 64  # keys at a time
_ROWS = 64  # at most
_LEAST_ROWS = 16  # of a matrix product
_NO_WINDOW = 2**30
_PROGRAMS = 4  # at least so many for every multiprocessor, that memory is always asked for


class MapKind(IntEnum):
    """What is kept of a layer, a number a token each; sums over heads."""

    NOTHING = 0
    PRODUCTS = 1  # s and u, two maps
    SIGNED_SUM = 2  # a u
    HEAD_ABS = 3  # |a u|
    KNOCKOUT = 4  # |a (u - sum_j a_j u_j)|


_KINDS = {
    Magnitude.SIGNED_SUM: MapKind.SIGNED_SUM,
    Magnitude.HEAD_ABS: MapKind.HEAD_ABS,
    Magnitude.KNOCKOUT: MapKind.KNOCKOUT,
}


@dataclass(frozen=True)
class FusedState:
    """The forward pass, as far as the backward pass needs it.

    Attributes:
        query: [H, B T, D]
        output: float32. [B T, H, Dv]
        log_totals: logarithms of the sums that weights were divided by. [B T, H]
    """

    query: Tensor
    output: Tensor
    log_totals: Tensor


@dataclass(frozen=True)
class FusedQKVGrads:
    """The backward pass.

    Attributes:
        maps: what is kept of the layer, of each key-value head. [0, 1 or 2, B, G, T, L]
        gradients: dq [H, B T, D], dk [G, B T, D], dv [G, B T, Dv], in the model's type; None where none goes on.
    """

    maps: Tensor
    gradients: tuple[Tensor, Tensor, Tensor] | None


class FusedAttention:
    """The kernels, for one device."""

    def __init__(self, device: torch.device) -> None:
        self._num_multiprocessors = 2  # of the interpreter, in tests
        if device.type == "cuda":
            self._num_multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count

    @staticmethod
    def supports(query: Tensor, form: AttentionForm) -> bool:
        """Whether they know this kind of attention."""
        return form.is_plain and query.dtype in (torch.float32, torch.bfloat16, torch.float16)

    @staticmethod
    def map_kind(switches: LayerSwitches | None) -> MapKind | None:
        """What a method keeps of a layer that it selects; None where that is more than they compute."""
        if switches is None:
            return MapKind.NOTHING
        if not isinstance(switches, GradEllm):
            return None
        if switches.loosening is Loosening.NONE:
            return _KINDS.get(switches.magnitude)
        is_plain = switches.similarity is Similarity.DOT and switches.rotary is Rotary.ROTATED
        return MapKind.PRODUCTS if is_plain else None

    def forward(self, query: Tensor, over: Sequences, form: AttentionForm) -> tuple[Tensor, FusedState]:
        """Attention's output [B T, H, Dv] of queries [H, B T, D]."""
        query = _by_rows(query)
        H, BT, _ = query.shape
        grid, constants = self._tiling(query, over)
        S, Dv = grid[2], over.values.shape[2]
        shares = query.new_empty((S, BT, H, Dv), dtype=torch.float32)
        highest, totals = query.new_empty((2, S, BT, H), dtype=torch.float32)
        forward_kernel[grid](
            query, over.keys, over.values, over.starts, over.lengths, shares, highest, totals,
            query.stride(0), query.stride(1), over.keys.stride(0), over.values.stride(0), BT, H, over.num_tokens,
            form.window or _NO_WINDOW, form.scaling, **constants,
        )  # fmt: skip
        output, exact = query.new_empty((BT, H, Dv)), query.new_empty((BT, H, Dv), dtype=torch.float32)
        log_totals = query.new_empty((BT, H), dtype=torch.float32)
        join_forward_kernel[(BT * H,)](
            shares, highest, totals, output, exact, log_totals, BT * H, S=S, S2=_power(S), DV=Dv, DV2=_power(Dv),
            num_warps=1,
        )  # fmt: skip
        return output, FusedState(query, exact, log_totals)

    def backward(
        self,
        attended: FusedState,
        gradient: Tensor,
        over: Sequences,
        form: AttentionForm,
        kind: MapKind,
        *,
        needs_input_grad: bool,
    ) -> FusedQKVGrads:
        """Gradients and maps from w = dl/do [B T, H, Dv]."""
        query, gradient = attended.query, _by_rows(gradient)
        H, BT, D = query.shape
        G, Dv, T = over.keys.shape[0], over.values.shape[2], over.num_tokens
        grid, constants = self._tiling(query, over)
        num_maps = 2 if kind is MapKind.PRODUCTS else min(kind, 1)
        maps = torch.zeros((num_maps, over.num_rows, G, T, over.width), device=query.device)
        dq_shares = query.new_empty((grid[2] * needs_input_grad, BT, H, D), dtype=torch.float32)
        own = query.new_empty((2, BT, H), dtype=torch.float32)  # a_tt and dS_tt
        backward_kernel[grid](
            query, over.keys, over.values, over.starts, over.lengths, gradient, attended.output, attended.log_totals,
            maps, dq_shares, own, query.stride(0), query.stride(1), over.keys.stride(0), over.values.stride(0),
            gradient.stride(0), gradient.stride(1), BT, H, T, over.width, maps.stride(0), form.window or _NO_WINDOW,
            form.scaling, KIND=int(kind), NEEDS_INPUT_GRAD=needs_input_grad, **constants,
        )  # fmt: skip
        if not needs_input_grad:
            return FusedQKVGrads(maps, None)
        dq, dk, dv = query.new_empty((H, BT, D)), query.new_empty((G, BT, D)), query.new_empty((G, BT, Dv))
        join_backward_kernel[(BT, G)](
            query, gradient, own, dq_shares, dq, dk, dv, query.stride(0), query.stride(1), gradient.stride(0),
            gradient.stride(1), BT, H, r=H // G, R=_power(H // G), S=grid[2], D=D, DV=Dv, D2=_power(D), DV2=_power(Dv),
            num_warps=4,
        )  # fmt: skip
        return FusedQKVGrads(maps, (dq, dk, dv))

    def _tiling(self, query: Tensor, over: Sequences) -> tuple[tuple[int, int, int], dict[str, int | bool]]:
        """Programs by sequence and key-value head, stretch of tokens, share of the keys; what they are compiled for."""
        (H, _, D), (G, _, Dv), T = query.shape, over.values.shape, over.num_tokens
        r = H // G
        R = _power(r)
        tokens = max(1, _LEAST_ROWS // R, min(_power(T), _ROWS // R))
        tiles, blocks = -(-T // tokens), -(-over.width // _BLOCK)
        shares = _PROGRAMS * self._num_multiprocessors // (over.num_rows * G * tiles)
        constants = {
            "G": G, "r": r, "R": R, "TOKENS": tokens, "D": D, "DV": Dv, "D2": max(16, _power(D)),
            "DV2": max(16, _power(Dv)), "BLOCK": _BLOCK, "EXACT": query.dtype == torch.float32, "num_warps": 4,
        }  # fmt: skip
        return (over.num_rows * G, tiles, max(1, min(blocks, shares))), constants


def _by_rows(x: Tensor) -> Tensor:
    """The same, each row's numbers one after the other."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _power(number: int) -> int:
    """The smallest power of two that is not smaller."""
    return 1 << (number - 1).bit_length()
