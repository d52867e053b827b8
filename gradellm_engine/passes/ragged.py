"""What a pass through the model is, as its attention layers see it.

A pass reads tokens of several sequences that stand behind one another in one row: to all layers but attention they are
tokens like any others, and weights are read once for all of them. In each attention layer, keys and values go to where
their sequences' are kept, and each query meets what its own sequence holds. In an explained pass

    1. the graph starts at the attention output of the lowest selected layer (`graph_anchor`): parameters are frozen,
       and everything below is a constant of the gradients that are read;
    2. every attention output above is a node of `attended`, whose backward pass meets w = dl/do, computes U and adds
       the layer's scores to the heat maps.

Two kinds of pass do this: `RaggedPass` here, for parts of any length, one after the other, and `BatchedPass`
(`gradellm_engine.passes.batched`), for one token of each sequence, all at once.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gradellm_engine.attention.ops import (
    AttentionForm,
    AttentionState,
    attend,
    attention_backward,
    attention_output,
    grouped,
    value_gradients,
    visibility,
)
from gradellm_engine.attribution.in_pass import Maps, arithmetic_of, summed
from gradellm_engine.distributed.process_group import ProcessGroup
from gradellm_engine.kv_cache.pool import KVSlot
from gradellm_engine.layers.rotary_switch import coded
from gradellm_engine.params import GradEllm, LayerSwitches, Rotary

KEPT_PRODUCTS = 2**20  # of a layer, from the forward to the backward pass; more are computed twice


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
    def again(cls, slot: KVSlot, start: int, end: int, explain: ExplainSpec) -> SequenceChunk:
        """The tokens at positions start..end, which the slot holds."""
        return cls(slot, slot.ids[start:end], explain, start, is_new=False)

    @property
    def end(self) -> int:
        """One past the position of the last token."""
        return self.start + len(self.ids)

    def last_positions(self, count: int) -> list[int]:
        """Those of so many tokens that end with its last, as the model takes them."""
        return coded(range(self.end - count, self.end), is_long=self.slot.is_long)


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

    def backward(self, query: Tensor, gradient: Tensor, *, goes_on: bool) -> QKVGrads | None:
        """Add the layer's scores to the heat maps; the gradients, where the graph goes on. In float32 or better.

        Args:
            query: [1, H, T, D]
            gradient: dl/do. [1, T, H, Dv]
            goes_on: whether anything below needs a gradient.

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
    def row(self) -> Tensor:
        """The tokens and their positions, as the model takes them: see `rotary_switch.coded`. [2, T]"""

    def store(self, index: int, keys: Tensor, values: Tensor) -> None:
        """Keep a layer's keys [G, T, D] and values [G, T, Dv] of the tokens that are new."""

    def store_rotary(self, index: int, cosines: Tensor, sines: Tensor) -> None:
        """Keep the rotary embedding that a layer takes, of the tokens that are new. [T, width] each"""

    def site(self, module: nn.Module, index: int, form: AttentionForm) -> LayerAttention:
        """A layer's attention."""

    def heat_maps(self) -> list[Tensor]:
        """After the backward pass: scores of each explained part's tokens, in the parts' order. [T, S] each"""


def attended(run: AttentionPass, site: LayerAttention, index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A layer's attention, as a node of the graph where it is explained. Shapes as for `LayerAttention`."""
    if run.graph_anchor is None or index < run.lowest:
        return site.output(query)
    output: Tensor = _Attention.apply(run.graph_anchor, query, key, value, site)  # type: ignore[no-untyped-call]
    return output


class _Attention(torch.autograd.Function):
    """Keys and values that are kept are constants that autograd never records."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, query: Tensor, key: Tensor, value: Tensor, site: LayerAttention) -> Tensor:  # noqa: ANN401
        ctx.site, ctx.query = site, query.detach()
        return site.output(ctx.query)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        site: LayerAttention = ctx.site
        # The lowest layer of the graph: nothing below needs a gradient.
        back = site.backward(ctx.query, gradients[0], goes_on=ctx.needs_input_grad[1]) or (None, None, None)
        return None, *back, None


@dataclass
class LayerGroup:
    """Layers of one device that see the same.

    Attributes:
        first: the first position that they see.
        domain: where similarities are normalised. [T, N] or [1, N], bool
        maps: what each keeps of its attention. [T, N] each
    """

    first: int
    domain: Tensor | None
    maps: list[Maps] = field(default_factory=list)


@dataclass
class RaggedPass:
    """Parts of any length, of sequences of any length, one after the other.

    Attributes:
        parts: the sequences.
        rotary_of: which of the model's rotary embeddings each layer takes.
        ranks: those that share the model's heads out; None where all are here.
        graph_anchor: see `AttentionPass`.
        needs_outputs: see `AttentionPass`.
        places: where each part's tokens stand in the row of all.
        kept: of each explained part, what layers keep of their attention, by what they see.
    """

    parts: Sequence[SequenceChunk]
    rotary_of: Mapping[int, int]
    ranks: ProcessGroup | None = None
    graph_anchor: Tensor | None = None
    output_is_used: bool = True
    places: list[slice] = field(default_factory=list)
    kept: dict[int, dict[tuple[int | None, torch.device], LayerGroup]] = field(default_factory=dict)
    _visible: dict[tuple[int, int | None, torch.device], Tensor | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        end = 0
        for part in self.parts:
            self.places.append(slice(end, end + len(part.ids)))
            end += len(part.ids)
        self.lowest = 0
        if self.graph_anchor is not None:
            self.lowest = min(part.explain.selected[0] for part in self.parts if part.explain is not None)

    @property
    def row(self) -> Tensor:
        """See `AttentionPass`."""
        ids = [token_id for part in self.parts for token_id in part.ids]
        positions = [position for part in self.parts for position in part.last_positions(len(part.ids))]
        return torch.tensor([ids, positions])

    def store(self, index: int, keys: Tensor, values: Tensor) -> None:
        """See `AttentionPass`."""
        for part, place in zip(self.parts, self.places, strict=True):
            if part.is_new:
                part.slot.store(index, part.start, keys[:, place], values[:, place])

    def store_rotary(self, index: int, cosines: Tensor, sines: Tensor) -> None:
        """See `AttentionPass`."""
        for part, place in zip(self.parts, self.places, strict=True):
            if part.is_new:
                its_cosines, its_sines = part.slot.rotary(self.rotary_of[index], part.start, part.end)
                its_cosines.copy_(cosines[place])
                its_sines.copy_(sines[place])

    def site(self, module: nn.Module, index: int, form: AttentionForm) -> RaggedLayer:
        """See `AttentionPass`."""
        return RaggedLayer(self, module, index, form)

    def shares(self, x: Tensor) -> list[Tensor]:
        """What is each part's of the row's tokens. [H, T, .] -> [H, its T, .] each"""
        return [x] if len(self.places) == 1 else [x[:, place] for place in self.places]

    def heat_maps(self) -> list[Tensor]:
        """See `AttentionPass`. Row t of a part has zeros behind its own position."""
        return [self._heat_map(i, part, part.explain) for i, part in enumerate(self.parts) if part.explain is not None]

    def _heat_map(self, i: int, part: SequenceChunk, explain: ExplainSpec) -> Tensor:
        total: Tensor | None = None
        for layers in self.kept[i].values():
            scores = summed(layers.maps, explain.switches, layers.domain, self.ranks)
            if total is None:
                total = scores.new_zeros((len(part.ids), part.end))
            total[:, layers.first :] += scores.to(total.device)
        if total is None:
            raise RuntimeError("no layer was explained")
        return arithmetic_of(explain.switches).heat_map(total, explain.switches)

    def visible(self, i: int, first: int, window: int | None, device: torch.device) -> Tensor | None:
        """Which keys from `first` on each of part i's queries sees; computed once for all layers that are alike."""
        part, key = self.parts[i], (i, window, device)
        if key not in self._visible:
            self._visible[key] = visibility(part.start, len(part.ids), first, part.end - first, window, device)
        return self._visible[key]

    def keep(self, i: int, first: int, window: int | None, maps: Maps) -> None:
        """Keep a layer's maps [T, N] of what part i's tokens see, from the position `first` on."""
        part, device = self.parts[i], maps[0].device
        layers = self.kept.setdefault(i, {})
        if (window, device) not in layers:
            domain = _domain(part, first, self.visible(i, first, window, device), device)
            layers[window, device] = LayerGroup(first, domain)
        layers[window, device].maps.append(maps)


@dataclass
class RaggedLayer:
    """One layer's attention in a pass of parts.

    Attributes:
        run: the pass.
        module: the layer's attention module.
        index: the layer's index.
        form: the layer's kind of attention.
        kept: what the forward pass computed of parts, where the backward pass goes on from it.
    """

    run: RaggedPass
    module: nn.Module
    index: int
    form: AttentionForm
    kept: dict[int, AttentionState] = field(default_factory=dict)

    def seen(self, i: int) -> tuple[int, Tensor, Tensor, Tensor | None]:
        """What part i's queries see: the first position, keys and values from there, and which query sees which."""
        part = self.run.parts[i]
        first = self.form.first_visible(part.start)
        K = part.slot.keys(self.index, first, part.end)
        V = part.slot.values(self.index, first, part.end)
        return first, K, V, self.run.visible(i, first, self.form.window, K.device)

    def output(self, query: Tensor) -> Tensor:
        """See `LayerAttention`."""
        if not self.run.output_is_used:  # who looks all the same shall not take it for numbers
            (_, H, T, _), Dv = query.shape, self.run.parts[0].slot.values(self.index, 0, 0).shape[-1]
            return query.new_full((1,), torch.nan).expand(1, T, H, Dv)
        outputs = []
        for i, (part, place) in enumerate(zip(self.run.parts, self.run.places, strict=True)):
            _, K, V, visible = self.seen(i)
            q = grouped(query[0, :, place], K.shape[0])
            keeps = part.explain is not None and keeps_products(q, K, KEPT_PRODUCTS)
            o, products = attention_output(q, K, V, visible, self.form, by_hand=keeps)
            if keeps and products is not None:
                self.kept[i] = products
            outputs.append(o.flatten(0, 1).transpose(0, 1))  # [T, H, Dv]
        return _joined(outputs)[None].contiguous()

    def backward(self, query: Tensor, gradient: Tensor, *, goes_on: bool) -> QKVGrads | None:
        """See `LayerAttention`."""
        backs = []
        rows = zip(self.run.parts, self.run.shares(query[0]), self.run.shares(gradient[0].transpose(0, 1)), strict=True)
        for i, (part, q, w) in enumerate(rows):
            back = None if part.explain is None else self._explain(i, part, part.explain, q, w, goes_on=goes_on)
            if goes_on:
                backs.append(back or self._nothing(part, q))
        if not goes_on:
            return None
        dq, dk, dv = (_joined(shares, dim=1) for shares in zip(*backs, strict=True))
        return dq[None], dk[None], dv[None]

    def _nothing(self, part: SequenceChunk, query: Tensor) -> QKVGrads:
        """The gradients of a part that is only read."""
        K = part.slot.keys(self.index, part.start, part.end)
        V = part.slot.values(self.index, part.start, part.end)
        return torch.zeros_like(query), torch.zeros_like(K), torch.zeros_like(V)

    def _explain(
        self, i: int, part: SequenceChunk, explain: ExplainSpec, query: Tensor, w: Tensor, *, goes_on: bool
    ) -> QKVGrads | None:
        """One part's: query [H, T, D], w = dl/do [H, T, Dv] -> dq [H, T, D], dk [G, T, D], dv [G, T, Dv]."""
        forward = self.kept.pop(i, None) or self._again(i, query)
        first = self.form.first_visible(part.start)
        w = grouped(w, forward.K.shape[0]).to(forward.q.dtype)
        U = value_gradients(forward, w)
        if self.index in explain.selected:
            unrotated = self._unrotated(part, first, forward) if explain.needs_unrotated else None
            maps = arithmetic_of(explain.switches).layer_maps(forward, w, U, explain.switches, unrotated)
            self.run.keep(i, first, self.form.window, maps)
        if not goes_on:
            return None
        gradients = attention_backward(forward, w, U, part.start - first)
        return gradients.dq.flatten(0, 1).to(query.dtype), gradients.dk.to(query.dtype), gradients.dv.to(query.dtype)

    def _again(self, i: int, query: Tensor) -> AttentionState:
        """The forward pass once more, every product kept. query: [H, T, D]"""
        compute = torch.promote_types(query.dtype, torch.float32)
        _, K, V, visible = self.seen(i)
        q = grouped(query, K.shape[0]).to(compute)
        return attend(q, K.to(compute), V.to(compute), visible, self.form)

    def _unrotated(self, part: SequenceChunk, first: int, forward: AttentionState) -> tuple[Tensor, Tensor]:
        """Queries [G, r, T, D] and keys [G, N, D] before the rotary embedding."""
        table, q = self.run.rotary_of[self.index], forward.q
        its_q = unrotated(self.module, q.flatten(0, 1)[None], *part.slot.rotary(table, part.start, part.end))
        return its_q.view(q.shape), unrotated(self.module, forward.K[None], *part.slot.rotary(table, first, part.end))[
            0
        ]


def _joined(shares: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Behind one another; a single one is not copied."""
    return shares[0] if len(shares) == 1 else torch.cat(tuple(shares), dim)


def keeps_products(q: Tensor, K: Tensor, most: int) -> bool:
    """Whether a backward pass may go on from the forward pass's products: where they are as exact, and few.

    q: [.., T, D], K: [.., N, D]
    """
    is_exact = torch.promote_types(q.dtype, torch.float32) == q.dtype
    return is_exact and q.shape[:-1].numel() * K.shape[-2] <= most


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


def _domain(part: SequenceChunk, first: int, visible: Tensor | None, device: torch.device) -> Tensor | None:
    """Where a part's similarities are normalised in one layer; None for everywhere. [T, N] or [1, N], bool"""
    chosen = part.explain.domain if part.explain is not None else None
    if chosen is None:
        return visible
    inside = torch.nn.functional.pad(chosen, (0, part.end - len(chosen)))[None, first : part.end].to(device)
    return inside if visible is None else inside & visible
