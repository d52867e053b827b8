"""An attention pass over T tokens of each of B sequences at once: a decode step, or a replay of each one's last tokens.

The columns of a sequence's attention are its last L tokens, the last column its last token; columns that shorter
sequences lack on the left are masked. Every shape then depends on B, T and L alone, and every index is a tensor, so
that a graph can record the pass once and replay it (`gradellm_engine.compilation.graph_cache`). Compared with
`gradellm_engine.passes.ragged.RaggedPass`, it makes B times fewer calls.

Fused kernels read keys and values in place (`gradellm_engine.attention.fused`). Without them, they are gathered from
the pool into one tensor [B, G, L, .], in which shorter sequences repeat their first token on the left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

import torch
from torch import Tensor, nn

from gradellm_engine.attention.fused import FusedAttention, FusedState, MapForm, map_form
from gradellm_engine.attention.ops import (
    AttentionForm,
    AttentionState,
    InputGradient,
    attend,
    attention_backward,
    attention_output,
    grouped,
    own_value_gradient,
    value_gradients,
)
from gradellm_engine.attribution.in_pass import Maps, in_pass_method, sum_layer_scores
from gradellm_engine.distributed.process_group import ProcessGroup
from gradellm_engine.kv_cache.pool import KVPool, Sequences
from gradellm_engine.layers.rotary import unrotated
from gradellm_engine.params import LayerSwitches
from gradellm_engine.passes.base import MAX_KEPT_PRODUCTS, ExplainSpec, QKVGrads, SequenceChunk, keeps_products


def is_step(chunks: Sequence[SequenceChunk]) -> bool:
    """Whether a `BatchedPass` can run these chunks as a decode step: one new token each, explained by one method."""
    return _has_one_method(chunks) and all(chunk.is_new and len(chunk.ids) == 1 for chunk in chunks)


def is_replay(chunks: Sequence[SequenceChunk], num_tokens: int) -> bool:
    """Whether a `BatchedPass` can replay these chunks with `num_tokens` tokens of each sequence."""
    return _has_one_method(chunks) and all(
        not chunk.is_new and len(chunk.ids) <= num_tokens <= chunk.end for chunk in chunks
    )


def _has_one_method(chunks: Sequence[SequenceChunk]) -> bool:
    return len({chunk.explain.switches for chunk in chunks if chunk.explain is not None}) <= 1


class LinearOutputs(Enum):
    """What a pass does with the outputs of linear layers (`gradellm_engine.passes.activation_cache`)."""

    COMPUTED = auto()
    STORED = auto()  # computed, and cached for a replay
    LOADED = auto()  # taken from the cache


@dataclass(frozen=True)
class StepShape:
    """What determines the operations of a batched pass.

    Attributes:
        num_rows: B.
        num_tokens: T.
        width: L.
        is_new: whether tokens are new; False for a replay.
        switches: how tokens are explained; None for not at all.
        has_domains: whether any sequence normalises similarities over chosen tokens only.
        linear_outputs: what is done with the outputs of linear layers.
    """

    num_rows: int
    num_tokens: int
    width: int
    is_new: bool
    switches: LayerSwitches | None
    has_domains: bool
    linear_outputs: LinearOutputs = LinearOutputs.COMPUTED

    @classmethod
    def of(cls, chunks: Sequence[SequenceChunk]) -> StepShape:
        """The shape of these chunks, without padding."""
        explains = [chunk.explain for chunk in chunks if chunk.explain is not None]
        return cls(
            num_rows=len(chunks),
            num_tokens=max(len(chunk.ids) for chunk in chunks),
            width=max(chunk.end for chunk in chunks),
            is_new=chunks[0].is_new,
            switches=explains[0].switches if explains else None,
            has_domains=any(explain.domain is not None for explain in explains),
        )


class BatchedPass:
    """T tokens of each of B sequences of at most L tokens; see `gradellm_engine.passes.base.AttentionPass`.

    Attributes:
        shape: B, T and L, and how tokens are explained.
        ids_and_positions: the model's input, sequence after sequence. [2, B T]
        fused: attention kernels; None for torch's operations.
        ranks: the process group that shares the attention heads; None where all heads are local.
        is_repeated: whether a graph repeats the pass, and then overwrites its tensors.
        graph_anchor: see `AttentionPass`.
        lowest: see `AttentionPass`.
        output_is_used: see `AttentionPass`; outputs are computed in any case.
        num_logits: see `AttentionPass`; always all.
        relevance_rows: all or none.
        totals: the sum of the layers' scores; the last token's own score is in the last column. [B, T, L]
        cache_rows: the tokens' rows in the activation cache, where outputs are stored or loaded. [B T]
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
        self._inputs = torch.ones((2, B * (T + 1)), dtype=torch.long, device=device)
        self.ids_and_positions, (self._starts, self._lengths) = self._inputs[:, : B * T], self._inputs[:, B * T :]
        self._domains: Tensor | None = None
        if shape.has_domains:
            self._domains = torch.ones((B, shape.width), dtype=torch.bool, device=device)
        self.cache_rows = torch.zeros(B * T, dtype=torch.long, device=device)
        self.is_repeated = False
        self.graph_anchor: Tensor | None = None
        self.lowest = 0
        self.output_is_used = True
        self.num_logits = 0
        self.relevance_rows = shape.switches is not None and shape.switches.propagates_relevance
        if shape.switches is not None:
            self.graph_anchor = torch.zeros((), device=device, requires_grad=True)
            self.lowest = ExplainSpec(shape.switches).selected[0]
        self._explained: list[tuple[int, int, int]] = []  # row, number of tokens, length of the sequence

    def fill(self, chunks: Sequence[SequenceChunk], cache_rows: Sequence[int] | None = None) -> None:
        """Take B chunks, or fewer: the last chunk fills the rows that are left, and computes the same again.

        `cache_rows` are the rows of B T tokens in the activation cache, where their outputs are stored or loaded.
        """
        if cache_rows is not None:
            _upload(torch.tensor(cache_rows), self.cache_rows)
        T = self.shape.num_tokens
        explained = [(row, chunk) for row, chunk in enumerate(chunks) if chunk.explain is not None]
        self._explained = [(row, len(chunk.ids), chunk.end) for row, chunk in explained]
        padded = [*chunks, *[chunks[-1]] * (self.shape.num_rows - len(chunks))]
        ids = [token_id for chunk in padded for token_id in (chunk.ids if len(chunk.ids) == T else _last_ids(chunk, T))]
        positions = [position for chunk in padded for position in chunk.last_positions(T)]
        starts, lengths = [chunk.slot.start for chunk in padded], [chunk.end for chunk in padded]
        _upload(torch.tensor([ids + starts, positions + lengths]), self._inputs)
        if self._domains is not None:
            _upload(torch.stack([self._domain(chunk) for chunk in padded]), self._domains)

    def own_rows(self, chunks: Sequence[SequenceChunk]) -> list[int]:
        """Indexes of the chunks' tokens in the row of B T tokens, without padding."""
        ends = [(row + 1) * self.shape.num_tokens for row in range(len(chunks))]
        return [row for chunk, end in zip(chunks, ends, strict=True) for row in range(end - len(chunk.ids), end)]

    def begin(self) -> None:
        """Compute what all layers use from what `fill` uploaded; the first operations of a recorded pass."""
        (L, T), device = (self.shape.width, self.shape.num_tokens), self.ids_and_positions.device
        self._before = torch.arange(L - 1, -1, -1, device=device)  # distance of each column from the last
        self._ahead = torch.arange(T - 1, -1, -1, device=device)[:, None]  # columns from each token's own to the last
        self._pool_indexes = self._starts[:, None] + (self._lengths[:, None] - 1 - self._before).clamp_min(0)  # [B, L]
        self._gather_indexes: dict[tuple[int, int], Tensor] = {}
        self._visible: dict[tuple[int, int | None], Tensor] = {}
        self._maps: dict[tuple[int, int | None], list[Maps]] = {}  # of layers, by width and window

    def store(self, index: int, keys: Tensor, values: Tensor) -> None:
        """See `AttentionPass`."""
        store = None if self.fused is None else self.fused.store
        if self.shape.is_new and store is not None and keys.dtype is torch.float32:
            store(keys, values, self.sequences(index, self.shape.width))
        elif self.shape.is_new:
            own = self._pool_indexes[:, -1]
            self._pool.keys[index].index_copy_(1, own, keys)
            self._pool.values[index].index_copy_(1, own, values)

    def store_rotary(self, index: int, cosines: Tensor, sines: Tensor) -> None:
        """See `AttentionPass`."""
        if self.shape.is_new:
            own, table = self._pool_indexes[:, -1], self._rotary_of[index]
            self._pool.cosines[table].index_copy_(0, own, cosines)
            self._pool.sines[table].index_copy_(0, own, sines)

    def layer_attention(self, module: nn.Module, index: int, form: AttentionForm) -> BatchedLayer:
        """See `AttentionPass`."""
        return BatchedLayer(self, module, index, form)

    def add_maps(self, width: int, window: int | None, maps: Maps) -> None:
        """Add a layer's maps over the last `width` columns. [B, T, width] each"""
        self._maps.setdefault((width, window), []).append(maps)

    def end(self) -> None:
        """Compute scores from the layers' maps; the last operations of an explained pass."""
        switches, shape = self.shape.switches, self.shape
        if switches is None:
            raise RuntimeError("this pass has no method to explain tokens with")
        totals: Tensor | None = None
        for (width, window), maps in self._maps.items():
            scores = sum_layer_scores(maps, switches, self.domain(width, window), self.ranks)
            if totals is None:
                totals = scores.new_zeros((shape.num_rows, shape.num_tokens, shape.width))
            totals[..., -width:] += scores
        if totals is None:
            raise RuntimeError("no layer added maps: the backward pass did not run")
        self.totals = in_pass_method(switches).heat_map(totals, switches)
        self._maps = {}

    def heat_maps(self) -> list[Tensor]:
        """See `AttentionPass`."""
        if self._maps:
            self.end()
        rows = [self.totals[row, -num_tokens:, -end:] for row, num_tokens, end in self._explained]
        return [row.clone() for row in rows] if self.is_repeated else rows

    def gather(self, pooled: Tensor, width: int) -> Tensor:
        """Keys or values of the last `width` columns. [G, P, D] -> [B, G, width, D]"""
        G, P, D = pooled.shape
        if (G, width) not in self._gather_indexes:
            heads = torch.arange(G, device=pooled.device)[:, None] * P
            self._gather_indexes[G, width] = (heads + self._pool_indexes[:, None, -width:]).flatten()
        return pooled.view(G * P, D).index_select(0, self._gather_indexes[G, width]).view(-1, G, width, D)

    def keys_and_values(self, index: int, width: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values of the last `width` columns. [B, G, width, D], [B, G, width, Dv]"""
        return self.gather(self._pool.keys[index], width), self.gather(self._pool.values[index], width)

    def rotary(self, index: int, width: int) -> tuple[Tensor, Tensor]:
        """The cosines and sines that a layer takes, of the last `width` columns. [B, width, .] each"""
        table, indexes = self._rotary_of[index], self._pool_indexes[:, -width:]
        return self._pool.cosines[table][indexes], self._pool.sines[table][indexes]

    def sequences(self, index: int, width: int) -> Sequences:
        """A layer's keys and values of the last `width` columns, in place."""
        keys, values = self._pool.keys[index], self._pool.values[index]
        return Sequences(keys, values, self._starts, self._lengths, self.shape.num_tokens, width)

    def visible(self, width: int, window: int | None) -> Tensor:
        """Which of the last `width` columns each token sees. [B, T, width], bool"""
        if (width, window) not in self._visible:
            before = self._before[-width:]
            seen = (before < self._lengths[:, None])[:, None] & (before >= self._ahead)
            self._visible[width, window] = seen if window is None else seen & (before - self._ahead < window)
        return self._visible[width, window]

    def domain(self, width: int, window: int | None) -> Tensor:
        """The columns, of the last `width`, over which similarities are normalised. [B, T, width], bool"""
        seen = self.visible(width, window)
        if self._domains is not None:
            seen = seen & self._domains[:, None, -width:]
        if self.shape.switches is not None and ExplainSpec(self.shape.switches).excludes_sink:
            seen = seen & ~self.is_first(width)[:, None]
        return seen

    def is_first(self, width: int) -> Tensor:
        """Which of the last `width` columns are the first token of their sequence. [B, width], bool"""
        is_first: Tensor = self._before[-width:] == self._lengths[:, None] - 1
        return is_first

    def _domain(self, chunk: SequenceChunk) -> Tensor:
        """The tokens over which a chunk's similarities are normalised, by column. [L], bool"""
        chosen = chunk.explain.domain if chunk.explain is not None else None
        if chosen is None:
            return torch.ones(self.shape.width, dtype=torch.bool)
        left, right = self.shape.width - chunk.end, chunk.end - len(chosen)
        return torch.nn.functional.pad(chosen, (left, right))


@dataclass
class BatchedLayer:
    """One layer's attention in a batched pass; see `gradellm_engine.passes.base.LayerAttention`."""

    run: BatchedPass
    module: nn.Module
    index: int
    form: AttentionForm
    state: AttentionState | None = None
    fused_state: FusedState | None = None

    @property
    def width(self) -> int:
        """Columns that queries of this layer can see."""
        L, T = self.run.shape.width, self.run.shape.num_tokens
        return L if self.form.window is None else min(L, self.form.window + T - 1)

    @property
    def is_explained(self) -> bool:
        """Whether a gradient reaches this layer."""
        return self.run.shape.switches is not None and self.index >= self.run.lowest

    @property
    def is_selected(self) -> bool:
        """Whether the method selects this layer."""
        switches = self.run.shape.switches
        return switches is not None and self.index in ExplainSpec(switches).selected

    def output(self, query: Tensor) -> Tensor:
        """See `LayerAttention`."""
        fused = self.run.fused
        if fused is not None and fused.supports(query, self.form):
            over = self.run.sequences(self.index, self.width)
            maps = self._map_form if self.is_explained else None
            output, state = fused.forward(
                query[0], over, self.form, excludes_sink=maps is not None and maps.excludes_sink
            )
            self.fused_state = None if maps is None else state
            return output[None]
        K, V = self.run.keys_and_values(self.index, self.width)
        q = self._by_sequence(query[0], K.shape[1])
        # The gathered keys would be kept, too.
        keeps = self.is_explained and keeps_products(q, K, MAX_KEPT_PRODUCTS) and K.numel() <= MAX_KEPT_PRODUCTS
        seen = self.run.visible(self.width, self.form.window)
        o, products = attention_output(q, K, V, seen, self.form, keep_products=keeps)
        if keeps:
            self.state = products
        return o.flatten(1, 2).transpose(1, 2).reshape(1, query.shape[2], query.shape[1], -1)

    def backward(self, query: Tensor, gradient: Tensor, *, needs_input_grad: bool) -> QKVGrads | None:
        """See `LayerAttention`."""
        fused, fused_state = self.run.fused, self.fused_state
        if fused is not None and fused_state is not None:
            self.fused_state = None
            return self._fused_backward(fused, fused_state, gradient, needs_input_grad=needs_input_grad)
        compute = torch.promote_types(query.dtype, torch.float32)
        forward = self.state or self._recompute(query[0].to(compute))
        self.state = None
        w = self._by_sequence(gradient[0].transpose(0, 1).to(compute), forward.K.shape[1])
        U = value_gradients(forward, w)
        switches = self.run.shape.switches
        if switches is not None and self.is_selected:
            before = self._unrotated(forward) if ExplainSpec(switches).needs_unrotated else None
            excludes_sink = ExplainSpec(switches).excludes_sink
            explained = replace(forward, sources=~self.run.is_first(self.width)) if excludes_sink else forward
            maps = in_pass_method(switches).layer_maps(explained, w, U, switches, before)
            self.run.add_maps(self.width, self.form.window, maps)
        if not needs_input_grad:
            return None
        diagonal_offset = self.width - self.run.shape.num_tokens
        if self.run.relevance_rows:
            return None, None, _by_heads(own_value_gradient(forward, w, diagonal_offset), query.dtype)
        gradients = attention_backward(forward, w, U, diagonal_offset)
        dq, dk, dv = (_by_heads(x, query.dtype) for x in (gradients.dq.flatten(1, 2), gradients.dk, gradients.dv))
        return dq, dk, dv

    def _fused_backward(
        self, fused: FusedAttention, state: FusedState, gradient: Tensor, *, needs_input_grad: bool
    ) -> QKVGrads | None:
        maps, over = self._map_form, self.run.sequences(self.index, self.width)
        if maps is None:
            raise RuntimeError("the fused kernels do not compute this method's maps")
        needs = InputGradient.of(is_needed=needs_input_grad, weights_are_constant=self.run.relevance_rows)
        back = fused.backward(state, gradient[0], over, self.form, maps, needs)
        if len(back.maps):
            self.run.add_maps(self.width, self.form.window, tuple(back.maps.sum(2)))
        if back.dv is None:
            return None
        dq, dk = (None if by is None else by[None] for by in (back.dq, back.dk))
        return dq, dk, back.dv[None]

    @property
    def _map_form(self) -> MapForm | None:
        """The maps that the kernels compute of this layer; None where they cannot."""
        return map_form(self.run.shape.switches if self.is_selected else None)

    def _by_sequence(self, heads: Tensor, num_groups: int) -> Tensor:
        """Query heads by sequence and by the key-value head that they share. [H, B T, D] -> [B, G, r, T, D]"""
        B, T = self.run.shape.num_rows, self.run.shape.num_tokens
        return grouped(heads.reshape(len(heads), B, T, -1).transpose(0, 1), num_groups)

    def _recompute(self, query: Tensor) -> AttentionState:
        """The forward pass once more, with all products. query: [H, B T, D]"""
        K, V = (x.to(query.dtype) for x in self.run.keys_and_values(self.index, self.width))
        seen = self.run.visible(self.width, self.form.window)
        return attend(self._by_sequence(query, K.shape[1]), K, V, seen, self.form)

    def _unrotated(self, forward: AttentionState) -> tuple[Tensor, Tensor]:
        """Queries [B, G, r, T, D] and keys [B, G, L, D] before the rotary embedding."""
        cosines, sines = self.run.rotary(self.index, self.width)
        T = self.run.shape.num_tokens
        q = unrotated(self.module, forward.q.flatten(1, 2), cosines[:, -T:], sines[:, -T:])
        return q.view(forward.q.shape), unrotated(self.module, forward.K, cosines, sines)


def _by_heads(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The model's layout: heads first, then all sequences' tokens. [B, H, T, .] -> [1, H, B T, .]"""
    return x.transpose(0, 1).flatten(1, 2)[None].to(dtype)


def _last_ids(chunk: SequenceChunk, count: int) -> list[int]:
    """The `count` tokens of the slot that end with the chunk's last."""
    return chunk.slot.ids[chunk.end - count : chunk.end]


def _upload(values: Tensor, buffer: Tensor) -> None:
    """Fill a buffer; asynchronously where it is on a GPU."""
    buffer.copy_(values.pin_memory() if buffer.is_cuda else values, non_blocking=True)
