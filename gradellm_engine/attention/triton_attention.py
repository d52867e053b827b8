"""Attention of a few new tokens of each sequence on a GPU, by Triton kernels; see `gradellm_engine.attention.fused`.

A decode step's time is that of reading memory: as separate operations, a step copies every sequence's keys and values
out of the pool and reads them seven times, half of them in float32. The keys are split among programs, and a second,
small kernel merges the splits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradellm_engine.attention.fused import FusedQKVGrads, FusedState, MapForm, contiguous_rows
from gradellm_engine.attention.ops import AttentionForm, InputGradient
from gradellm_engine.attention.triton_kernels import (
    backward_kernel,
    forward_kernel,
    join_backward_kernel,
    join_forward_kernel,
)
from gradellm_engine.kv_cache.pool import Sequences

_BLOCK = 64  # keys of one iteration
_MAX_ROWS = 64  # of a program
_MIN_ROWS = 16  # of a matrix product in Triton
_NO_WINDOW = 2**30
_PROGRAMS_PER_MULTIPROCESSOR = 4  # at least, to keep memory busy


class TritonAttention:
    """Launches the kernels on one device."""

    store = prompts = None

    def __init__(self, device: torch.device) -> None:
        self._num_multiprocessors = 2  # for the interpreter, in tests
        if device.type == "cuda":
            self._num_multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count

    @staticmethod
    def supports(query: Tensor, form: AttentionForm) -> bool:
        """Whether the kernels compute this kind of attention."""
        return form.is_plain and query.dtype in (torch.float32, torch.bfloat16, torch.float16)

    def forward(
        self, query: Tensor, over: Sequences, form: AttentionForm, *, excludes_sink: bool = False
    ) -> tuple[Tensor, FusedState]:
        """The attention output [B T, H, Dv] of queries [H, B T, D]."""
        query = contiguous_rows(query)
        H, BT, _ = query.shape
        grid, constants = self._grid(query, over)
        S, Dv = grid[2] + excludes_sink, over.values.shape[2]
        partials = query.new_empty((S, BT, H, Dv), dtype=torch.float32)
        highest, totals = query.new_empty((2, S, BT, H), dtype=torch.float32)
        forward_kernel[grid](
            query, over.keys, over.values, over.starts, over.lengths, partials, highest, totals,
            query.stride(0), query.stride(1), over.keys.stride(0), over.values.stride(0), BT, H, over.num_tokens,
            form.window or _NO_WINDOW, form.scaling, EXCLUDES=excludes_sink, **constants,
        )  # fmt: skip
        output, exact = query.new_empty((BT, H, Dv)), query.new_empty((BT, H, Dv), dtype=torch.float32)
        log_totals = query.new_empty((BT, H), dtype=torch.float32)
        of_sources = torch.empty_like(exact) if excludes_sink else exact  # else not touched
        log_sources = torch.empty_like(log_totals) if excludes_sink else log_totals
        join_forward_kernel[(BT * H,)](
            partials, highest, totals, output, exact, log_totals, of_sources, log_sources, BT * H,
            EXCLUDES=excludes_sink, S=S, S2=_pow2(S), DV=Dv, DV2=_pow2(Dv), num_warps=1,
        )  # fmt: skip
        return output, FusedState(query, exact, log_totals, of_sources, log_sources)

    def backward(
        self,
        state: FusedState,
        gradient: Tensor,
        over: Sequences,
        form: AttentionForm,
        maps: MapForm,
        needs: InputGradient,
    ) -> FusedQKVGrads:
        """Gradients and maps from w = dl/do [B T, H, Dv]."""
        query, gradient = state.query, contiguous_rows(gradient)
        H, BT, D = query.shape
        G, Dv, T = over.keys.shape[0], over.values.shape[2], over.num_tokens
        grid, constants = self._grid(query, over)
        computed = torch.zeros((maps.kind.num_maps, over.num_rows, G, T, over.width), device=query.device)
        needs_all = needs is InputGradient.ALL
        dq_partials = query.new_empty((grid[2] * needs_all, BT, H, D), dtype=torch.float32)
        own = query.new_empty((2, BT, H), dtype=torch.float32)  # weights A_tt and dS_tt of each token's own key
        backward_kernel[grid](
            query, over.keys, over.values, over.starts, over.lengths, gradient, state.output, state.log_totals,
            state.source_output, state.log_source_totals, computed, dq_partials, own, query.stride(0),
            query.stride(1), over.keys.stride(0), over.values.stride(0), gradient.stride(0), gradient.stride(1),
            BT, H, T, over.width, computed.stride(0), form.window or _NO_WINDOW, form.scaling, KIND=int(maps.kind),
            EXCLUDES=maps.excludes_sink, NEEDS=int(needs), **constants,
        )  # fmt: skip
        if needs is InputGradient.NOTHING:
            return FusedQKVGrads(computed)
        dq, dk, dv = (query.new_empty(shape) for shape in ((H * needs_all, BT, D), (G * needs_all, BT, D), (G, BT, Dv)))
        join_backward_kernel[(BT, G)](
            query, gradient, own, dq_partials, dq, dk, dv, query.stride(0), query.stride(1), gradient.stride(0),
            gradient.stride(1), BT, H, r=H // G, R=_pow2(H // G), S=grid[2], D=D, DV=Dv, D2=_pow2(D), DV2=_pow2(Dv),
            NEEDS=int(needs), num_warps=4,
        )  # fmt: skip
        return FusedQKVGrads(computed, dq, dk, dv) if needs_all else FusedQKVGrads(computed, dv=dv)

    def _grid(self, query: Tensor, over: Sequences) -> tuple[tuple[int, int, int], dict[str, int | bool]]:
        """The grid (sequence and key-value head, tile of tokens, split of keys), and the kernels' constants."""
        (H, _, D), (G, _, Dv), T = query.shape, over.values.shape, over.num_tokens
        r = H // G
        R = _pow2(r)
        tokens = max(1, _MIN_ROWS // R, min(_pow2(T), _MAX_ROWS // R))
        tiles, blocks = -(-T // tokens), -(-over.width // _BLOCK)
        splits = _PROGRAMS_PER_MULTIPROCESSOR * self._num_multiprocessors // (over.num_rows * G * tiles)
        constants = {
            "G": G, "r": r, "R": R, "TOKENS": tokens, "D": D, "DV": Dv, "D2": max(16, _pow2(D)),
            "DV2": max(16, _pow2(Dv)), "BLOCK": _BLOCK, "EXACT": query.dtype == torch.float32, "num_warps": 4,
        }  # fmt: skip
        return (over.num_rows * G, tiles, max(1, min(blocks, splits))), constants


def _pow2(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()
