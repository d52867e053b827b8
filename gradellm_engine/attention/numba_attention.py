"""Attention on a CPU by Numba kernels; see `gradellm_engine.attention.fused`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradellm_engine.attention.fused import FusedQKVGrads, FusedState, MapForm, PromptSpan, contiguous_rows
from gradellm_engine.attention.ops import AttentionForm, InputGradient
from gradellm_engine.cpu_kernels import attention as kernels
from gradellm_engine.cpu_kernels import prefill_attention
from gradellm_engine.cpu_kernels.team import bits, launch
from gradellm_engine.cpu_kernels.tiles import BYTES, PANEL
from gradellm_engine.kv_cache.pool import Sequences

_NO_WINDOW = 2**31 - 1
_TASKS_PER_THREAD = 4  # at least, so that threads end at about the same time


class NumbaPromptAttention:
    """Launches the kernels of prompts; see `PromptAttention`."""

    @staticmethod
    def panels(spans: Sequence[PromptSpan]) -> Tensor:
        """See `PromptAttention`: the table of `cpu_kernels.prefill_attention`. [panels, COLUMNS]"""
        rows = [
            (span.row + first, min(PANEL, span.length - first), span.start, span.before + first)
            for span in spans
            for first in range(0, span.length, PANEL)
        ]
        # The longest first, so that threads end at about the same time.
        return torch.tensor(sorted(rows, key=lambda row: row[1] + row[3], reverse=True))

    def store(self, keys: Tensor, values: Tensor, pool_keys: Tensor, pool_values: Tensor, panels: Tensor) -> None:
        """See `PromptAttention`."""
        keys, values = contiguous_rows(keys), contiguous_rows(values)
        G, _, D = keys.shape
        launch(
            prefill_attention.STORE_PANELS, len(panels) * G, *_pool(pool_keys, pool_values), panels.data_ptr(), G, D,
            values.shape[2], *_row_strides(keys), *_row_strides(values),
        )  # fmt: skip

    def output(
        self, query: Tensor, pool_keys: Tensor, pool_values: Tensor, panels: Tensor, form: AttentionForm
    ) -> Tensor:
        """See `PromptAttention`."""
        query = contiguous_rows(query)
        (H, T, D), (G, _, Dv) = query.shape, pool_values.shape
        output = torch.empty((T, H, Dv))
        launch(
            prefill_attention.PREFILL, len(panels) * H, *_row_strides(query), *_pool(pool_keys, pool_values),
            panels.data_ptr(), H, H // G, D, Dv, form.window or _NO_WINDOW, bits(form.scaling), output.data_ptr(),
        )  # fmt: skip
        return output


class NumbaAttention:
    """Launches the kernels.

    Attributes:
        prompts: those of prompts.
    """

    prompts = NumbaPromptAttention()

    @staticmethod
    def supports(query: Tensor, form: AttentionForm) -> bool:
        """See `FusedAttention`."""
        return form.is_plain and query.dtype is torch.float32

    def store(self, keys: Tensor, values: Tensor, over: Sequences) -> None:
        """Write new keys [G, B T, D] and values [G, B T, Dv] to the pool."""
        keys, values = contiguous_rows(keys), contiguous_rows(values)
        G, tokens, D = keys.shape
        launch(
            kernels.STORE, G, *_pool(over.keys, over.values), over.starts.data_ptr(), over.lengths.data_ptr(),
            over.num_tokens, tokens, D, values.shape[2], *_row_strides(keys), *_row_strides(values),
        )  # fmt: skip

    def forward(
        self, query: Tensor, over: Sequences, form: AttentionForm, *, excludes_sink: bool = False
    ) -> tuple[Tensor, FusedState]:
        """See `FusedAttention`. The backward kernel needs no more for maps without the sink."""
        query = contiguous_rows(query)
        H, tokens, _ = query.shape
        G, _, Dv = over.values.shape
        output, log_totals = torch.empty((tokens, H, Dv)), torch.empty((tokens, H))
        r = H // G
        heads = r if tokens * G >= _TASKS_PER_THREAD * torch.get_num_threads() else 1
        launch(
            kernels.FORWARD, tokens * H // heads, *_common(query, over, form), *_row_strides(query), output.data_ptr(),
            log_totals.data_ptr(), heads,
        )  # fmt: skip
        return output, FusedState(query, output, log_totals)

    def backward(
        self,
        state: FusedState,
        gradient: Tensor,
        over: Sequences,
        form: AttentionForm,
        maps: MapForm,
        needs: InputGradient,
    ) -> FusedQKVGrads:
        """See `FusedAttention`."""
        query, gradient = state.query, contiguous_rows(gradient)
        H, tokens, D = query.shape
        (G, _, Dv), T = over.values.shape, over.num_tokens
        computed = torch.empty((maps.kind.num_maps, over.num_rows, G, T, over.width))
        dq, dk, dv = torch.empty((H, tokens, D)), torch.empty((G, tokens, D)), torch.empty((G, tokens, Dv))
        launch(
            kernels.BACKWARD, tokens * G, *_common(query, over, form), *_row_strides(query), gradient.data_ptr(),
            gradient.stride(1) * BYTES, gradient.stride(0) * BYTES, state.output.data_ptr(),
            state.log_totals.data_ptr(), computed.data_ptr(), computed.stride(0), maps.kind.num_maps, over.width,
            maps.kind, maps.excludes_sink, dq.data_ptr(), dk.data_ptr(), dv.data_ptr(), needs,
        )  # fmt: skip
        if needs is InputGradient.ALL:
            return FusedQKVGrads(computed, dq, dk, dv)
        return FusedQKVGrads(computed, dv=dv if needs is InputGradient.VALUES else None)


def _common(query: Tensor, over: Sequences, form: AttentionForm) -> tuple[int, ...]:
    """What both kernels take first: the pool, the sequences in it, the layer's shape and form."""
    (H, _, D), (G, _, Dv) = query.shape, over.values.shape
    return (
        *_pool(over.keys, over.values),
        over.starts.data_ptr(), over.lengths.data_ptr(), over.num_tokens, H, H // G, D, Dv, form.window or _NO_WINDOW,
        bits(form.scaling),
    )  # fmt: skip


def _pool(keys: Tensor, values: Tensor) -> tuple[int, int, int, int]:
    """Addresses of a layer's keys and values in the pool, and bytes between heads. [G, P, .]"""
    return keys.data_ptr(), values.data_ptr(), keys.stride(0) * BYTES, values.stride(0) * BYTES


def _row_strides(x: Tensor) -> tuple[int, int, int]:
    """Address, and bytes between heads and between tokens. [heads, tokens, width]"""
    return x.data_ptr(), x.stride(0) * BYTES, x.stride(1) * BYTES
