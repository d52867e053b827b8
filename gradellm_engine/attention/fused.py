"""Fused attention of a few new tokens of each sequence: forward, and backward with attribution maps; and of prompts.

It computes what `gradellm_engine.attention.ops` defines, with keys and values read in place and twice: once forward,
once backward, where products, gradients and the maps that scores are computed from are all at hand.
`gradellm_engine.attention.triton_attention` has the kernels of GPUs, `gradellm_engine.attention.numba_attention` those
of CPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from torch import Tensor

from gradellm_engine.attention.ops import AttentionForm, InputGradient
from gradellm_engine.kv_cache.pool import Sequences
from gradellm_engine.params import GradEllm, LayerSwitches, Loosening, Magnitude, Rectify, Rotary, Similarity


class MapKind(IntEnum):
    """Which maps of a layer the backward kernel computes, summed over heads."""

    NOTHING = 0
    PRODUCTS = 1  # s and u, two maps
    SIGNED_SUM = 2  # a u
    HEAD_ABS = 3  # |a u|
    KNOCKOUT = 4  # |a (u - sum_j a_j u_j)|
    HEAD_POSITIVE = 5  # ReLU(a u)
    KNOCKOUT_POSITIVE = 6  # ReLU(a (u - sum_j a_j u_j))

    @property
    def num_maps(self) -> int:
        """How many maps that is: 0, 1 or 2."""
        return 2 if self is MapKind.PRODUCTS else min(self, 1)


_KINDS = {
    Magnitude.SIGNED_SUM: MapKind.SIGNED_SUM,
    Magnitude.HEAD_ABS: MapKind.HEAD_ABS,
    Magnitude.KNOCKOUT: MapKind.KNOCKOUT,
}
_POSITIVE_KINDS = {
    Magnitude.SIGNED_SUM: MapKind.HEAD_POSITIVE,
    Magnitude.KNOCKOUT: MapKind.KNOCKOUT_POSITIVE,
}


@dataclass(frozen=True)
class MapForm:
    """The maps of a layer.

    Attributes:
        kind: which.
        excludes_sink: whether a are `source_weights` without each sequence's first token.
    """

    kind: MapKind
    excludes_sink: bool = False


@dataclass(frozen=True)
class FusedState:
    """What the backward pass needs of the forward pass.

    Attributes:
        query: [H, B T, D]
        output: in float32. [B T, H, Dv]
        log_totals: log-sum-exp of the scaled query-key products. [B T, H]
        source_output: the output by `source_weights` without each sequence's first token, in float32, where kernels
            need it. [B T, H, Dv]
        log_source_totals: log-sum-exp of the products without it. [B T, H]
    """

    query: Tensor
    output: Tensor
    log_totals: Tensor
    source_output: Tensor | None = None
    log_source_totals: Tensor | None = None


@dataclass(frozen=True)
class FusedQKVGrads:
    """Results of the backward pass.

    Attributes:
        maps: the layer's maps, for each key-value head. [0, 1 or 2, B, G, T, L]
        dq: [H, B T, D], in the model's dtype; None where not needed, as dk and dv.
        dk: [G, B T, D]
        dv: [G, B T, Dv]
    """

    maps: Tensor
    dq: Tensor | None = None
    dk: Tensor | None = None
    dv: Tensor | None = None


@dataclass(frozen=True)
class PromptSpan:
    """Tokens of one sequence that a pass reads.

    Attributes:
        row: the first of them in the pass.
        length: how many.
        start: the sequence's first position in the pool.
        before: tokens of the sequence before them.
    """

    row: int
    length: int
    start: int
    before: int


class PromptAttention(Protocol):
    """Kernels for the tokens of several prompts, over a layer's keys [G, P, D] and values [G, P, Dv] in the pool."""

    def panels(self, spans: Sequence[PromptSpan]) -> Tensor:
        """A pass's tokens as the kernels take them, in every layer."""

    def store(self, keys: Tensor, values: Tensor, pool_keys: Tensor, pool_values: Tensor, panels: Tensor) -> None:
        """Write new keys [G, T, D] and values [G, T, Dv] to the pool."""

    def output(
        self, query: Tensor, pool_keys: Tensor, pool_values: Tensor, panels: Tensor, form: AttentionForm
    ) -> Tensor:
        """The attention output [T, H, Dv] of queries [H, T, D]."""


class FusedAttention(Protocol):
    """Kernels of one device."""

    @property
    def store(self) -> Callable[[Tensor, Tensor, Sequences], None] | None:
        """Writes new keys [G, B T, D] and values [G, B T, Dv] to the pool; None where torch's operators are as fast."""

    @property
    def prompts(self) -> PromptAttention | None:
        """Kernels of prompts; None where torch's operators are as fast."""

    def supports(self, query: Tensor, form: AttentionForm) -> bool:
        """Whether the kernels compute this kind of attention."""

    def forward(
        self, query: Tensor, over: Sequences, form: AttentionForm, *, excludes_sink: bool = False
    ) -> tuple[Tensor, FusedState]:
        """The attention output [B T, H, Dv] of queries [H, B T, D]; `excludes_sink` is that of the maps."""

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


def contiguous_rows(x: Tensor) -> Tensor:
    """`x` with contiguous rows, as kernels read them."""
    return x if x.stride(-1) == 1 else x.contiguous()


def map_form(switches: LayerSwitches | None) -> MapForm | None:
    """The maps that a method needs of a layer that it selects; None where the kernels do not compute them.

    Every switch that changes `grad_ellm.layer_maps` is considered here; one that is not has no effect there.
    """
    if switches is None:
        return MapForm(MapKind.NOTHING)
    if not isinstance(switches, GradEllm):
        return None
    if switches.loosening is Loosening.NONE:
        kinds = _POSITIVE_KINDS if switches.rectify is Rectify.PER_HEAD else _KINDS
        kind = kinds.get(switches.magnitude)
        return None if kind is None else MapForm(kind, switches.excludes_sink)
    is_plain = switches.similarity is Similarity.DOT and switches.rotary is Rotary.ROTATED
    return MapForm(MapKind.PRODUCTS) if is_plain else None  # without its sink, too: similarities are compared later
