"""What a pass through the model is, as its attention layers see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gradellm_engine.attention.ops import AttentionForm
from gradellm_engine.kv_cache.pool import KVSlot
from gradellm_engine.layers.rotary_switch import encode_positions
from gradellm_engine.params import GradEllm, LayerSwitches, Rotary

MAX_KEPT_PRODUCTS = 2**20  # of a layer, from the forward to the backward pass; more are computed twice


@dataclass(frozen=True)
class ExplainSpec:
    """How a part's tokens are explained.

    Attributes:
        switches: the method's; `layers` are explicit indexes.
        domain: the prompt tokens over which similarities are normalised, None for all that a layer sees. [m], bool
    """

    switches: LayerSwitches
    domain: Tensor | None = None

    @property
    def selected(self) -> tuple[int, ...]:
        """The layers that are summed."""
        return self.switches.explicit_layers

    @property
    def needs_unrotated(self) -> bool:
        """Whether queries and keys are compared as they were before the rotary embedding."""
        return isinstance(self.switches, GradEllm) and self.switches.rotary is Rotary.UNROTATED


@dataclass(frozen=True)
class SequenceChunk:
    """A sequence's share of a pass.

    Attributes:
        slot: what is known of it.
        ids: the tokens to read.
        explain: None for tokens that are not explained.
        start: position of the first.
        is_new: whether they come into the slot now; False for tokens that it holds and that are read once more.
        read_again: its one token, which is new, will be read once more with at most so many, to be explained; 0 if not.
    """

    slot: KVSlot
    ids: Sequence[int]
    explain: ExplainSpec | None
    start: int
    is_new: bool
    replay_length: int = 0

    @classmethod
    def new(
        cls, slot: KVSlot, ids: Sequence[int], explain: ExplainSpec | None = None, *, replay_length: int = 0
    ) -> SequenceChunk:
        """Tokens that follow on those that the slot holds."""
        return cls(slot, ids, explain, slot.length, is_new=True, replay_length=replay_length)

    @classmethod
    def replay(cls, slot: KVSlot, start: int, end: int, explain: ExplainSpec) -> SequenceChunk:
        """The tokens at positions start..end, which the slot holds."""
        return cls(slot, slot.ids[start:end], explain, start, is_new=False)

    @property
    def end(self) -> int:
        """One past the position of the last token."""
        return self.start + len(self.ids)

    def last_positions(self, count: int) -> list[int]:
        """Those of so many tokens that end with its last, as the model takes them."""
        return encode_positions(range(self.end - count, self.end), is_long=self.slot.is_long)


@dataclass(frozen=True)
class Target:
    """What is differentiated at a token: a logit of the token after it, less another's where one is given."""

    token_id: int
    contrast_id: int | None = None


QKVGrads = tuple[Tensor, Tensor, Tensor]


class LayerAttention(Protocol):
    """One layer's attention in one pass."""

    def output(self, query: Tensor) -> Tensor:
        """What the model goes on with; the same numbers whether a token is explained or not.

        [1, H, T, D] -> [1, T, H, Dv]
        """

    def backward(self, query: Tensor, gradient: Tensor, *, needs_input_grad: bool) -> QKVGrads | None:
        """Add the layer's scores to the heat maps; the gradients, where the graph goes on. In float32 or better.

        Args:
            query: [1, H, T, D]
            gradient: dl/do. [1, T, H, Dv]
            needs_input_grad: whether anything below needs a gradient.

        Returns:
            dq [1, H, T, D], dk [1, G, T, D], dv [1, G, T, Dv]; zero for tokens that are only read: they have no target.
        """


class AttentionPass(Protocol):
    """One pass through the model."""

    graph_anchor: Tensor | None
    """A leaf that requires a gradient, so that the graph starts where it is passed in; None for no graph."""
    lowest: int
    """The lowest layer that is explained."""
    output_is_used: bool
    """Whether the model looks at what attention gives; not where all that it would make of that is known."""

    @property
    def ids_and_positions(self) -> Tensor:
        """The tokens and their positions, as the model takes them: see `rotary_switch.encode_positions`. [2, T]"""

    def store(self, index: int, keys: Tensor, values: Tensor) -> None:
        """Keep a layer's keys [G, T, D] and values [G, T, Dv] of the tokens that are new."""

    def store_rotary(self, index: int, cosines: Tensor, sines: Tensor) -> None:
        """Keep the rotary embedding that a layer takes, of the tokens that are new. [T, width] each"""

    def layer_attention(self, module: nn.Module, index: int, form: AttentionForm) -> LayerAttention:
        """A layer's attention."""

    def heat_maps(self) -> list[Tensor]:
        """After the backward pass: scores of each explained part's tokens, in the parts' order. [T, S] each"""


def layer_attention_output(
    run: AttentionPass, layer: LayerAttention, index: int, query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """A layer's attention, as a node of the graph where it is explained. Shapes as for `LayerAttention`."""
    if run.graph_anchor is None or index < run.lowest:
        return layer.output(query)
    output: Tensor = _Attention.apply(run.graph_anchor, query, key, value, layer)  # type: ignore[no-untyped-call]
    return output


class _Attention(torch.autograd.Function):
    """Keys and values that are kept are constants that autograd never records."""

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
        # The lowest layer of the graph: nothing below needs a gradient.
        back = layer.backward(ctx.query, gradients[0], needs_input_grad=ctx.needs_input_grad[1]) or (None, None, None)
        return None, *back, None


def keeps_products(q: Tensor, K: Tensor, most: int) -> bool:
    """Whether a backward pass may go on from the forward pass's products: where they are as exact, and few.

    q: [.., T, D], K: [.., N, D]
    """
    is_exact = torch.promote_types(q.dtype, torch.float32) == q.dtype
    return is_exact and q.shape[:-1].numel() * K.shape[-2] <= most
