"""A step of many sequences: a new token of each, or the last T of each once more; the attention of all at once.

The columns of a sequence's attention are its last L tokens, the last column its last token; what shorter sequences lack
on the left is hidden. So every shape depends on B, T and L alone, and every place where something is read or written is
a tensor: a GPU can record the step once and replay it (`gradellm_engine.compilation.cuda_graphs`). Against one part
after the other (`gradellm_engine.passes.ragged.RaggedPass`) it saves calls, B times as many.

Kernels written for it read keys and values where they lie (`gradellm_engine.attention.fused`). Where there are none,
they are gathered from the pool into one tensor [B, G, L, .], shorter sequences with their first token again on the
left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
)
from gradellm_engine.attribution.in_pass import Maps, arithmetic_of, summed
from gradellm_engine.distributed.process_group import ProcessGroup
from gradellm_engine.kv_cache.pool import KVPool, Sequences
from gradellm_engine.params import LayerSwitches
from gradellm_engine.passes.ragged import KEPT_PRODUCTS, ExplainSpec, QKVGrads, SequenceChunk, keeps_products, unrotated

if TYPE_CHECKING:  # what it needs is not everywhere
    from gradellm_engine.attention import fused
    from gradellm_engine.attention.fused import FusedAttention, MapKind


def is_step(parts: Sequence[SequenceChunk]) -> bool:
    """Whether a `BatchedPass` can run these parts: one new token of each, explained in one way where they are."""
    return _is_one_way(parts) and all(part.is_new and len(part.ids) == 1 for part in parts)


def is_replay(parts: Sequence[SequenceChunk], num_tokens: int) -> bool:
    """Whether it can run these, with so many tokens of each: at most so many once more, and no fewer to read."""
    return _is_one_way(parts) and all(not part.is_new and len(part.ids) <= num_tokens <= part.end for part in parts)


def _is_one_way(parts: Sequence[SequenceChunk]) -> bool:
    return len({part.explain.switches for part in parts if part.explain is not None}) <= 1


@dataclass(frozen=True)
class StepShape:
    """What decides which operations a step is made of.

    Attributes:
        num_rows: B.
        num_tokens: T.
        width: L.
        is_new: whether tokens come into their slots, rather than being read once more.
        switches: how tokens are explained, None where none is.
        has_domains: whether similarities are normalised over chosen tokens in any of them.
    """

    num_rows: int
    num_tokens: int
    width: int
    is_new: bool
    switches: LayerSwitches | None
    has_domains: bool

    @classmethod
    def of(cls, parts: Sequence[SequenceChunk]) -> StepShape:
        """That of some parts as they are."""
        explains = [part.explain for part in parts if part.explain is not None]
        return cls(
            num_rows=len(parts),
            num_tokens=max(len(part.ids) for part in parts),
            width=max(part.end for part in parts),
            is_new=parts[0].is_new,
            switches=explains[0].switches if explains else None,
            has_domains=any(explain.domain is not None for explain in explains),
        )


class BatchedPass:
    """T tokens of each of B sequences of at most L tokens; see `gradellm_engine.passes.ragged.AttentionPass`.

    Attributes:
        shape: B, T and L, and how they are explained.
        row: the tokens and their positions, as the model takes them, sequence after sequence. [2, B T]
        fused: the kernels that compute attention; None for torch's.
        ranks: those that share the model's heads out; None where all are here.
        graph_anchor: a leaf that requires a gradient; None for no graph.
        lowest: the lowest layer that is explained.
        needs_outputs: it gives them in any case.
        totals: the sum of layers' scores, the last token's in the last column. [B, T, L]
    """

    def __init__(
        self,
        pool: KVPool,
        rotary_of: Mapping[int, int],
        shape: StepShape,
        device: torch.device,
        fused: FusedAttention | None = None,
        ranks: ProcessGroup | None = None,
    ) -> None:
        self.shape, self.fused, self.ranks = shape, fused, ranks
        self._pool, self._rotary_of = pool, rotary_of
        B, T = shape.num_rows, shape.num_tokens
        self._numbers = torch.ones((2, B * (T + 1)), dtype=torch.long, device=device)
        self.row, (self._starts, self._lengths) = self._numbers[:, : B * T], self._numbers[:, B * T :]
        self._domains: Tensor | None = None
        if shape.has_domains:
            self._domains = torch.ones((B, shape.width), dtype=torch.bool, device=device)
        self.graph_anchor: Tensor | None = None
        self.lowest = 0
        self.output_is_used = True
        if shape.switches is not None:
            self.graph_anchor = torch.zeros((), device=device, requires_grad=True)
            self.lowest = ExplainSpec(shape.switches).selected[0]
        self._explained: list[tuple[int, int, int]] = []  # rows, tokens, and how long their sequences are

    def fill(self, parts: Sequence[SequenceChunk]) -> None:
        """Take B parts, or fewer: the last one then stands in the rows that are left, and computes the same again."""
        T = self.shape.num_tokens
        explained = [(row, part) for row, part in enumerate(parts) if part.explain is not None]
        self._explained = [(row, len(part.ids), part.end) for row, part in explained]
        padded = [*parts, *[parts[-1]] * (self.shape.num_rows - len(parts))]
        ids = [token_id for part in padded for token_id in (part.ids if len(part.ids) == T else _last_ids(part, T))]
        positions = [position for part in padded for position in part.last_positions(T)]
        starts, lengths = [part.slot.start for part in padded], [part.end for part in padded]
        _upload(torch.tensor([ids + starts, positions + lengths]), self._numbers)
        if self._domains is not None:
            _upload(torch.stack([self._domain(part) for part in padded]), self._domains)

    def own_rows(self, parts: Sequence[SequenceChunk]) -> list[int]:
        """Where the parts' own tokens stand in the row of all."""
        ends = [(row + 1) * self.shape.num_tokens for row in range(len(parts))]
        return [place for part, end in zip(parts, ends, strict=True) for place in range(end - len(part.ids), end)]

    def begin(self) -> None:
        """What all layers use, from what was filled in; the first operations of a step."""
        (L, T), device = (self.shape.width, self.shape.num_tokens), self.row.device
        self._before = torch.arange(L - 1, -1, -1, device=device)  # columns from each to the last token's
        self._ahead = torch.arange(T - 1, -1, -1, device=device)[:, None]  # from each token's own
        self._places = self._starts[:, None] + (self._lengths[:, None] - 1 - self._before).clamp_min(0)  # [B, L]
        self._rows: dict[tuple[int, int], Tensor] = {}
        self._seen: dict[tuple[int, int | None], Tensor] = {}
        self._kept: dict[tuple[int, int | None], list[Maps]] = {}  # of attention, by what layers see

    def store(self, index: int, keys: Tensor, values: Tensor) -> None:
        """See `Pass`."""
        if self.shape.is_new:
            own = self._places[:, -1]
            self._pool.keys[index].index_copy_(1, own, keys)
            self._pool.values[index].index_copy_(1, own, values)

    def store_rotary(self, index: int, cosines: Tensor, sines: Tensor) -> None:
        """See `Pass`."""
        if self.shape.is_new:
            own, table = self._places[:, -1], self._rotary_of[index]
            self._pool.cosines[table].index_copy_(0, own, cosines)
            self._pool.sines[table].index_copy_(0, own, sines)

    def site(self, module: nn.Module, index: int, form: AttentionForm) -> BatchedLayer:
        """See `Pass`."""
        return BatchedLayer(self, module, index, form)

    def keep(self, width: int, window: int | None, maps: Maps) -> None:
        """Keep a layer's maps of the last `width` columns. [B, T, width] each"""
        self._kept.setdefault((width, window), []).append(maps)

    def end(self) -> None:
        """Make scores of what layers kept; the last operations of an explained step."""
        switches, shape = self.shape.switches, self.shape
        if switches is None:
            raise RuntimeError("this step explains nothing")
        totals: Tensor | None = None
        for (width, window), rows in self._kept.items():
            scores = summed(rows, switches, self.domain(width, window), self.ranks)
            if totals is None:
                totals = scores.new_zeros((shape.num_rows, shape.num_tokens, shape.width))
            totals[..., -width:] += scores
        if totals is None:
            raise RuntimeError("no layer was explained")
        self.totals = arithmetic_of(switches).heat_map(totals, switches)
        self._kept = {}

    def heat_maps(self) -> list[Tensor]:
        """See `Pass`."""
        if self._kept:
            self.end()
        return [self.totals[row, -num_tokens:, -end:] for row, num_tokens, end in self._explained]

    def gathered(self, places: Tensor, width: int) -> Tensor:
        """Keys or values of the last `width` columns. [G, P, D] -> [B, G, width, D]"""
        G, P, D = places.shape
        if (G, width) not in self._rows:
            heads = torch.arange(G, device=places.device)[:, None] * P
            self._rows[G, width] = (heads + self._places[:, None, -width:]).flatten()
        return places.view(G * P, D).index_select(0, self._rows[G, width]).view(-1, G, width, D)

    def keys_and_values(self, index: int, width: int) -> tuple[Tensor, Tensor]:
        """A layer's, of the last `width` columns. [B, G, width, D], [B, G, width, Dv]"""
        return self.gathered(self._pool.keys[index], width), self.gathered(self._pool.values[index], width)

    def rotary(self, index: int, width: int) -> tuple[Tensor, Tensor]:
        """The cosines and sines that a layer takes, of the last `width` columns. [B, width, .] each"""
        table, places = self._rotary_of[index], self._places[:, -width:]
        return self._pool.cosines[table][places], self._pool.sines[table][places]

    def sequences(self, index: int, width: int) -> Sequences:
        """A layer's keys and values of the last `width` columns, where they lie."""
        keys, values = self._pool.keys[index], self._pool.values[index]
        return Sequences(keys, values, self._starts, self._lengths, self.shape.num_tokens, width)

    def visible(self, width: int, window: int | None) -> Tensor:
        """Which of the last `width` columns each token sees. [B, T, width], bool"""
        if (width, window) not in self._seen:
            before = self._before[-width:]
            seen = (before < self._lengths[:, None])[:, None] & (before >= self._ahead)
            self._seen[width, window] = seen if window is None else seen & (before - self._ahead < window)
        return self._seen[width, window]

    def domain(self, width: int, window: int | None) -> Tensor:
        """Where similarities are normalised, of the last `width` columns. [B, T, width], bool"""
        seen = self.visible(width, window)
        return seen if self._domains is None else seen & self._domains[:, None, -width:]

    def _domain(self, part: SequenceChunk) -> Tensor:
        """A part's chosen tokens, by column; all where it chose none. [L], bool"""
        chosen = part.explain.domain if part.explain is not None else None
        if chosen is None:
            return torch.ones(self.shape.width, dtype=torch.bool)
        left, right = self.shape.width - part.end, part.end - len(chosen)
        return torch.nn.functional.pad(chosen, (left, right))


@dataclass
class BatchedLayer:
    """One layer's attention in a step; see `gradellm_engine.passes.ragged.LayerAttention`."""

    run: BatchedPass
    module: nn.Module
    index: int
    form: AttentionForm
    kept: AttentionState | None = None
    kept_by_fused: fused.FusedState | None = None

    @property
    def width(self) -> int:
        """Columns that queries of this layer can see."""
        L, T = self.run.shape.width, self.run.shape.num_tokens
        return L if self.form.window is None else min(L, self.form.window + T - 1)

    @property
    def is_explained(self) -> bool:
        """Whether a gradient comes this far down."""
        return self.run.shape.switches is not None and self.index >= self.run.lowest

    @property
    def is_selected(self) -> bool:
        """Whether its maps are wanted."""
        switches = self.run.shape.switches
        return switches is not None and self.index in ExplainSpec(switches).selected

    def output(self, query: Tensor) -> Tensor:
        """See `Site`."""
        fused = self.run.fused
        if fused is not None and fused.computes(query, self.form):
            over = self.run.sequences(self.index, self.width)
            output, kept = fused.forward(query[0], over, self.form)
            self.kept_by_fused = kept if self.is_explained and self._map_kind(fused) is not None else None
            return output[None]
        K, V = self.run.keys_and_values(self.index, self.width)
        q = self._by_sequence(query[0], K.shape[1])
        # What is gathered would be kept, too.
        keeps = self.is_explained and keeps_products(q, K, KEPT_PRODUCTS) and K.numel() <= KEPT_PRODUCTS
        seen = self.run.visible(self.width, self.form.window)
        o, products = attention_output(q, K, V, seen, self.form, by_hand=keeps)
        if keeps:
            self.kept = products
        return o.flatten(1, 2).transpose(1, 2).reshape(1, query.shape[2], query.shape[1], -1)

    def backward(self, query: Tensor, gradient: Tensor, *, goes_on: bool) -> QKVGrads | None:
        """See `Site`."""
        fused, kept_by_fused = self.run.fused, self.kept_by_fused
        if fused is not None and kept_by_fused is not None:
            self.kept_by_fused = None
            return self._fused_backward(fused, kept_by_fused, gradient, goes_on=goes_on)
        compute = torch.promote_types(query.dtype, torch.float32)
        forward = self.kept or self._again(query[0].to(compute))
        self.kept = None
        w = self._by_sequence(gradient[0].transpose(0, 1).to(compute), forward.K.shape[1])
        U = value_gradients(forward, w)
        switches = self.run.shape.switches
        if switches is not None and self.is_selected:
            before = self._unrotated(forward) if ExplainSpec(switches).needs_unrotated else None
            maps = arithmetic_of(switches).layer_maps(forward, w, U, switches, before)
            self.run.keep(self.width, self.form.window, maps)
        if not goes_on:
            return None
        gradients = attention_backward(forward, w, U, self.width - self.run.shape.num_tokens)
        # Heads first, then all sequences' tokens, as the model has them.
        by_heads = (gradients.dq.flatten(1, 2), gradients.dk, gradients.dv)
        dq, dk, dv = (x.transpose(0, 1).flatten(1, 2)[None].to(query.dtype) for x in by_heads)
        return dq, dk, dv

    def _fused_backward(
        self, fused: FusedAttention, kept: fused.FusedState, gradient: Tensor, *, goes_on: bool
    ) -> QKVGrads | None:
        kind, over = self._map_kind(fused), self.run.sequences(self.index, self.width)
        if kind is None:
            raise RuntimeError("the kernels were not to keep this layer")
        back = fused.backward(kept, gradient[0], over, self.form, kind, goes_on=goes_on)
        if len(back.maps):
            self.run.keep(self.width, self.form.window, tuple(back.maps.sum(2)))
        if back.gradients is None:
            return None
        dq, dk, dv = back.gradients
        return dq[None], dk[None], dv[None]

    def _map_kind(self, fused: FusedAttention) -> MapKind | None:
        """What the kernels keep of this layer; None where they do not know it."""
        switches = self.run.shape.switches
        return fused.map_kind(switches if self.is_selected else None)

    def _by_sequence(self, heads: Tensor, num_groups: int) -> Tensor:
        """Each sequence's heads by the key-value head that they share. [H, B T, D] -> [B, G, r, T, D]"""
        B, T = self.run.shape.num_rows, self.run.shape.num_tokens
        return grouped(heads.reshape(len(heads), B, T, -1).transpose(0, 1), num_groups)

    def _again(self, query: Tensor) -> AttentionState:
        """The forward pass once more, every product kept. query: [H, B T, D]"""
        K, V = (x.to(query.dtype) for x in self.run.keys_and_values(self.index, self.width))
        seen = self.run.visible(self.width, self.form.window)
        return attend(self._by_sequence(query, K.shape[1]), K, V, seen, self.form)

    def _unrotated(self, forward: AttentionState) -> tuple[Tensor, Tensor]:
        """Queries [B, G, r, T, D] and keys [B, G, L, D] before the rotary embedding."""
        cosines, sines = self.run.rotary(self.index, self.width)
        T = self.run.shape.num_tokens
        q = unrotated(self.module, forward.q.flatten(1, 2), cosines[:, -T:], sines[:, -T:])
        return q.view(forward.q.shape), unrotated(self.module, forward.K, cosines, sines)


def _last_ids(part: SequenceChunk, count: int) -> list[int]:
    """The part's tokens, and those before it in its slot."""
    return part.slot.ids[part.end - count : part.end]


def _upload(values: Tensor, buffer: Tensor) -> None:
    """Fill a buffer; without waiting, where it lies on a GPU."""
    buffer.copy_(values.pin_memory() if buffer.is_cuda else values, non_blocking=True)
