"""What a pass through the model is, as its attention layers see it.

A pass reads tokens of several sequences, concatenated in one row: to all layers but attention they are tokens like any
others, and weights are read once for all of them. In each attention layer, new keys and values are written to the
sequences' KV slots, and each query attends to what its own sequence's slot holds. In an explained pass

    1. the graph starts at the attention output of the lowest selected layer (`AttentionPass.graph_anchor`): parameters
       are frozen, and everything below is a constant of the gradients that are read;
    2. every attention output above is a node of `layer_attention_output`, whose backward pass gets w = dl/do, computes
       U and adds the layer's scores to the heat maps.

There are two kinds of pass: `RaggedPass` (`gradellm_engine.passes.ragged`), for chunks of any length, one after the
other, and `BatchedPass` (`gradellm_engine.passes.batched`), for T tokens of each sequence, all at once. A `MixedPass`
(`gradellm_engine.passes.mixed`) is a ragged prefill and a batched decode step as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gradellm_engine.attention.ops import AttentionForm
from gradellm_engine.kv_cache.pool import KVSlot
from gradellm_engine.layers.relevance_rules import Rows
from gradellm_engine.layers.rotary_switch import encode_positions
from gradellm_engine.params import GradEllm, LayerSwitches, Rotary

MAX_KEPT_PRODUCTS = 2**20  # query-key products of a layer kept for the backward pass; more are computed twice


@dataclass(frozen=True)
class ExplainSpec:
    """How a chunk's tokens are explained.

    Attributes:
        switches: the method's settings; `layers` are explicit indexes.
        domain: the prompt tokens over which similarities are normalised; None for all that a layer sees. [m], bool
    """

    switches: LayerSwitches
    domain: Tensor | None = None

    @property
    def selected(self) -> tuple[int, ...]:
        """Indexes of the layers whose scores are summed."""
        return self.switches.explicit_layers

    @property
    def excludes_sink(self) -> bool:
        """Whether the first token of the sequence is no source."""
        return self.switches.excludes_sink

    @property
    def propagates_relevance(self) -> bool:
        """Whether gradients have the rules of relevance."""
        return self.switches.propagates_relevance

    @property
    def needs_unrotated(self) -> bool:
        """Whether queries and keys are compared before the rotary embedding."""
        return isinstance(self.switches, GradEllm) and self.switches.rotary is Rotary.UNROTATED


@dataclass(frozen=True)
class SequenceChunk:
    """Consecutive tokens of one sequence in a pass.

    Attributes:
        slot: the sequence's keys and values.
        ids: the tokens to read.
        explain: how the tokens are explained; None for not at all.
        start: position of the first token.
        is_new: whether the tokens' keys and values are written to the slot; False for a replay of tokens that it holds.
        replay_length: where the last token is replayed later, to be explained, the most tokens of that replay; 0 for no
            replay.
    """

    slot: KVSlot
    ids: Sequence[int]
    explain: ExplainSpec | None
    start: int
    is_new: bool
    replay_length: int = 0

    @classmethod
    def new(
        cls,
        slot: KVSlot,
        ids: Sequence[int],
        explain: ExplainSpec | None = None,
        *,
        after: SequenceChunk | None = None,
        replay_length: int = 0,
    ) -> SequenceChunk:
        """New tokens after those that the slot holds, or after another new chunk that the same pass reads before."""
        start = slot.length if after is None else after.end
        return cls(slot, ids, explain, start, is_new=True, replay_length=replay_length)

    @classmethod
    def replay(cls, slot: KVSlot, start: int, end: int, explain: ExplainSpec) -> SequenceChunk:
        """Tokens that the slot holds, at positions start..end, to be read again and explained."""
        return cls(slot, slot.ids[start:end], explain, start, is_new=False)

    @property
    def end(self) -> int:
        """One past the position of the last token."""
        return self.start + len(self.ids)

    def last_positions(self, count: int) -> list[int]:
        """Encoded positions of the `count` tokens that end with the chunk's last."""
        return encode_positions(range(self.end - count, self.end), is_long=self.slot.is_long)


@dataclass(frozen=True)
class Target:
    """What is differentiated at a token: the logit of a next token, minus that of a contrast token if there is one."""

    token_id: int
    contrast_id: int | None = None


class StopForward(Exception):  # noqa: N818 (control flow: no error)
    """Ends a layer's forward pass at its attention, as torch.utils.checkpoint ends a recomputation early."""


QKVGrads = tuple[Tensor | None, Tensor | None, Tensor]  # by queries, keys and values; None for constants


class LayerAttention(Protocol):
    """One layer's attention in one pass."""

    def output(self, query: Tensor) -> Tensor:
        """The attention output; the same numbers whether a token is explained or not. [1, H, T, D] -> [1, T, H, Dv]"""

    def backward(self, query: Tensor, gradient: Tensor, *, needs_input_grad: bool) -> QKVGrads | None:
        """Add the layer's scores to the heat maps; return gradients where the graph continues. In float32 or better.

        Args:
            query: [1, H, T, D]
            gradient: dl/do. [1, T, H, Dv]
            needs_input_grad: whether a layer below needs a gradient; None is returned otherwise.

        Returns:
            dq [1, H, T, D], dk [1, G, T, D], dv [1, G, T, Dv]; zero for tokens that are not explained. dq and dk are
            None where all of the pass's tokens propagate relevance: attention weights are constants then.
        """


class AttentionPass(Protocol):
    """One pass through the model."""

    graph_anchor: Tensor | None
    """A leaf that requires a gradient: the graph starts at the node that takes it. None for no graph."""
    lowest: int
    """The lowest layer that is explained."""
    output_is_used: bool
    """Whether the attention output is used; not in a replay where the outputs of all linear layers are cached."""
    num_logits: int
    """Tokens at the end of the row whose logits are computed; 0 for all."""

    @property
    def relevance_rows(self) -> Rows:
        """Which tokens of the row propagate relevance."""

    @property
    def ids_and_positions(self) -> Tensor:
        """Token ids and encoded positions (`rotary_switch.encode_positions`), the model's input. [2, T]"""

    def store(self, index: int, keys: Tensor, values: Tensor) -> None:
        """Write a layer's keys [G, T, D] and values [G, T, Dv] of new tokens to their slots."""

    def store_rotary(self, index: int, cosines: Tensor, sines: Tensor) -> None:
        """Write the cosines and sines that a layer takes, of new tokens, to their slots. [T, width] each"""

    def layer_attention(self, module: nn.Module, index: int, form: AttentionForm) -> LayerAttention:
        """The attention of one layer."""

    def heat_maps(self) -> list[Tensor]:
        """After the backward pass: scores of each explained chunk's tokens, in the chunks' order. [T, S] each"""


def layer_attention_output(
    run: AttentionPass, layer: LayerAttention, index: int, query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """A layer's attention output, a node of the graph where the layer is explained. Shapes as in `LayerAttention`."""
    if run.graph_anchor is None or index < run.lowest:
        return layer.output(query)
    if run.relevance_rows is True:  # the layers below them need no backward pass then
        query, key = query.detach(), key.detach()
    output: Tensor = _Attention.apply(run.graph_anchor, query, key, value, layer)  # type: ignore[no-untyped-call]
    return output


class _Attention(torch.autograd.Function):
    """A layer's attention as a graph node. Cached keys and values are constants, which autograd never records."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        graph_anchor: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layer: LayerAttention,
    ) -> Tensor:
        ctx.layer, ctx.query = layer, query.detach()
        return layer.output(ctx.query)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        layer: LayerAttention = ctx.layer
        # In the lowest layer of the graph, the value needs no gradient.
        back = layer.backward(ctx.query, gradients[0], needs_input_grad=ctx.needs_input_grad[3]) or (None, None, None)
        return None, *back, None


def keeps_products(q: Tensor, K: Tensor, limit: int) -> bool:
    """Whether the forward pass's query-key products are kept for the backward pass: in float32 or better, and few.

    q: [.., T, D], K: [.., N, D]
    """
    is_exact = torch.promote_types(q.dtype, torch.float32) == q.dtype
    return is_exact and q.shape[:-1].numel() * K.shape[-2] <= limit
