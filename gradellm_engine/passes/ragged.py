"""An attention pass over chunks of any length, of sequences of any length, computed one chunk after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from gradellm_engine.attention.fused import FusedAttention, PromptAttention, PromptSpan
from gradellm_engine.attention.ops import (
    AttentionForm,
    AttentionState,
    attend,
    attention_backward,
    attention_output,
    grouped,
    own_value_gradient,
    value_gradients,
    visibility,
)
from gradellm_engine.attribution.in_pass import Maps, in_pass_method, sum_layer_scores
from gradellm_engine.distributed.process_group import ProcessGroup
from gradellm_engine.layers.relevance_rules import Rows
from gradellm_engine.layers.rotary import unrotated
from gradellm_engine.passes.base import (
    MAX_KEPT_PRODUCTS,
    ExplainSpec,
    QKVGrads,
    SequenceChunk,
    keeps_products,
)

MIN_FUSED_TOKENS = 8  # of some chunk, for kernels to compute attention: they compute some tens of tokens at a time


@dataclass
class LayerGroup:
    """Layers of one device with the same attention window, whose scores are computed together.

    Attributes:
        first: the first visible position.
        domain: the keys over which similarities are normalised. [T, N] or [1, N], bool
        maps: each layer's maps. [T, N] each
    """

    first: int
    domain: Tensor | None
    maps: list[Maps] = field(default_factory=list)


@dataclass
class RaggedPass:
    """See `gradellm_engine.passes.base.AttentionPass`.

    Attributes:
        chunks: what is read of each sequence.
        rotary_of: index of the rotary embedding that each layer takes, by layer.
        ranks: the process group that shares the attention heads; None where all heads are local.
        graph_anchor: see `AttentionPass`.
        output_is_used: see `AttentionPass`.
        num_logits: see `AttentionPass`.
        fused: attention kernels for chunks that are not explained; None for torch's operations.
        prompts: those of them that this pass's tokens take.
        panels: the tokens as they take them.
        relevance_rows: see `AttentionPass`.
        row_slices: each chunk's tokens in the concatenated row.
        layer_groups: maps of each explained chunk, by the layers' window and device.
    """

    chunks: Sequence[SequenceChunk]
    rotary_of: Mapping[int, int]
    ranks: ProcessGroup | None = None
    graph_anchor: Tensor | None = None
    output_is_used: bool = True
    num_logits: int = 0
    fused: FusedAttention | None = None
    prompts: PromptAttention | None = None
    panels: Tensor | None = None
    row_slices: list[slice] = field(default_factory=list)
    layer_groups: dict[int, dict[tuple[int | None, torch.device], LayerGroup]] = field(default_factory=dict)
    _visible: dict[tuple[int, int | None, torch.device], Tensor | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        end = 0
        for chunk in self.chunks:
            self.row_slices.append(slice(end, end + len(chunk.ids)))
            end += len(chunk.ids)
        self.lowest = 0
        self.relevance_rows = self._relevance_rows()
        is_prefill = all(chunk.is_new and chunk.explain is None for chunk in self.chunks)
        is_long = max(len(chunk.ids) for chunk in self.chunks) >= MIN_FUSED_TOKENS
        if self.fused is not None and is_prefill and is_long:
            self.prompts = self.fused.prompts
        if self.prompts is not None:
            self.panels = self.prompts.panels(
                [
                    PromptSpan(rows.start, len(chunk.ids), chunk.slot.start, chunk.start)
                    for chunk, rows in zip(self.chunks, self.row_slices, strict=True)
                ]
            )
        if self.graph_anchor is not None:
            self.lowest = min(chunk.explain.selected[0] for chunk in self.chunks if chunk.explain is not None)

    def _relevance_rows(self) -> Rows:
        explained = [chunk.explain.propagates_relevance for chunk in self.chunks if chunk.explain is not None]
        if self.graph_anchor is None or not any(explained):
            return False
        if all(explained):  # tokens of chunks that are not explained have no gradient
            return True
        rows = torch.zeros(self.row_slices[-1].stop, dtype=torch.bool, device=self.graph_anchor.device)
        for chunk, row_slice in zip(self.chunks, self.row_slices, strict=True):
            rows[row_slice] = chunk.explain is not None and chunk.explain.propagates_relevance
        return rows

    @property
    def ids_and_positions(self) -> Tensor:
        """See `AttentionPass`."""
        ids = [token_id for chunk in self.chunks for token_id in chunk.ids]
        positions = [position for chunk in self.chunks for position in chunk.last_positions(len(chunk.ids))]
        return torch.tensor([ids, positions])

    def store(self, index: int, keys: Tensor, values: Tensor) -> None:
        """See `AttentionPass`."""
        if self.panels is not None and self.prompts is not None and self._is_float(keys, index):
            self.prompts.store(keys, values, *self.pooled(index), self.panels)
            return
        for chunk, rows in zip(self.chunks, self.row_slices, strict=True):
            if chunk.is_new:
                chunk.slot.store(index, chunk.start, keys[:, rows], values[:, rows])

    def store_rotary(self, index: int, cosines: Tensor, sines: Tensor) -> None:
        """See `AttentionPass`."""
        for chunk, rows in zip(self.chunks, self.row_slices, strict=True):
            if chunk.is_new:
                stored_cosines, stored_sines = chunk.slot.rotary(self.rotary_of[index], chunk.start, chunk.end)
                stored_cosines.copy_(cosines[rows])
                stored_sines.copy_(sines[rows])

    def layer_attention(self, module: nn.Module, index: int, form: AttentionForm) -> RaggedLayer:
        """See `AttentionPass`."""
        return RaggedLayer(self, module, index, form)

    def pooled(self, index: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values in the pool. [G, P, D], [G, P, Dv]"""
        pool = self.chunks[0].slot.pool
        return pool.keys[index], pool.values[index]

    def fused_output(self, index: int, query: Tensor, form: AttentionForm) -> Tensor | None:
        """The attention output by kernels, where they compute it. [H, T, D] -> [T, H, Dv]"""
        if self.panels is None or self.prompts is None or self.fused is None:
            return None
        if not (self.fused.supports(query, form) and self._is_float(query, index)):
            return None
        return self.prompts.output(query, *self.pooled(index), self.panels, form)

    def _is_float(self, x: Tensor, index: int) -> bool:
        """Whether queries or keys, and what the pool has of a layer, are in float32."""
        return x.dtype is torch.float32 and all(pooled.dtype is torch.float32 for pooled in self.pooled(index))

    def split_by_chunk(self, x: Tensor) -> list[Tensor]:
        """Split the concatenated row. [H, T, .] -> [H, T_i, .] for chunk i"""
        return [x] if len(self.row_slices) == 1 else [x[:, rows] for rows in self.row_slices]

    def heat_maps(self) -> list[Tensor]:
        """See `AttentionPass`. Row t of a chunk is zero past the token's own position."""
        return [
            self._heat_map(i, chunk, chunk.explain) for i, chunk in enumerate(self.chunks) if chunk.explain is not None
        ]

    def _heat_map(self, i: int, chunk: SequenceChunk, explain: ExplainSpec) -> Tensor:
        total: Tensor | None = None
        for layers in self.layer_groups.get(i, {}).values():
            scores = sum_layer_scores(layers.maps, explain.switches, layers.domain, self.ranks)
            if total is None:
                total = scores.new_zeros((len(chunk.ids), chunk.end))
            total[:, layers.first :] += scores.to(total.device)
        if total is None:
            raise RuntimeError("no layer added maps: the backward pass did not run")
        return in_pass_method(explain.switches).heat_map(total, explain.switches)

    def visible(self, i: int, first: int, window: int | None, device: torch.device) -> Tensor | None:
        """Which keys from `first` on each query of chunk i sees; computed once for all layers of a window."""
        chunk, key = self.chunks[i], (i, window, device)
        if key not in self._visible:
            self._visible[key] = visibility(chunk.start, len(chunk.ids), first, chunk.end - first, window, device)
        return self._visible[key]

    def add_maps(self, i: int, first: int, window: int | None, maps: Maps) -> None:
        """Add a layer's maps [T, N] over the keys that chunk i's tokens see, which begin at position `first`."""
        chunk, device = self.chunks[i], maps[0].device
        layers = self.layer_groups.setdefault(i, {})
        if (window, device) not in layers:
            domain = _domain(chunk, first, self.visible(i, first, window, device), device)
            layers[window, device] = LayerGroup(first, domain)
        layers[window, device].maps.append(maps)


@dataclass
class RaggedLayer:
    """One layer's attention in a ragged pass.

    Attributes:
        run: the pass.
        module: the layer's attention module.
        index: the layer's index.
        form: the layer's kind of attention.
        states: the forward pass's products that the backward pass continues from, by chunk.
    """

    run: RaggedPass
    module: nn.Module
    index: int
    form: AttentionForm
    states: dict[int, AttentionState] = field(default_factory=dict)

    def visible_keys(self, i: int) -> tuple[int, Tensor, Tensor, Tensor | None]:
        """What chunk i's queries see: the first position, keys and values from there, and the mask of queries."""
        chunk = self.run.chunks[i]
        first = self.form.first_visible(chunk.start)
        K = chunk.slot.keys(self.index, first, chunk.end)
        V = chunk.slot.values(self.index, first, chunk.end)
        return first, K, V, self.run.visible(i, first, self.form.window, K.device)

    def output(self, query: Tensor) -> Tensor:
        """See `LayerAttention`."""
        if not self.run.output_is_used:  # NaN, so that a use of it would be found
            (_, H, T, _), Dv = query.shape, self.run.chunks[0].slot.values(self.index, 0, 0).shape[-1]
            return query.new_full((1,), torch.nan).expand(1, T, H, Dv)
        fused = self.run.fused_output(self.index, query[0], self.form)
        if fused is not None:
            return fused[None]
        outputs = []
        for i, (chunk, rows) in enumerate(zip(self.run.chunks, self.run.row_slices, strict=True)):
            _, K, V, visible = self.visible_keys(i)
            q = grouped(query[0, :, rows], K.shape[0])
            keeps = chunk.explain is not None and keeps_products(q, K, MAX_KEPT_PRODUCTS)
            o, products = attention_output(q, K, V, visible, self.form, keep_products=keeps)
            if keeps and products is not None:
                self.states[i] = products
            outputs.append(o.flatten(0, 1).transpose(0, 1))  # [T, H, Dv]
        return _concatenated(outputs)[None].contiguous()

    def backward(self, query: Tensor, gradient: Tensor, *, needs_input_grad: bool) -> QKVGrads | None:
        """See `LayerAttention`."""
        grads = []
        per_chunk = zip(
            self.run.chunks,
            self.run.split_by_chunk(query[0]),
            self.run.split_by_chunk(gradient[0].transpose(0, 1)),
            strict=True,
        )
        for i, (chunk, q, w) in enumerate(per_chunk):
            grad: tuple[Tensor, Tensor, Tensor] | None = None
            if chunk.explain is not None:
                grad = self._explain(i, chunk, chunk.explain, q, w, needs_input_grad=needs_input_grad)
            if needs_input_grad:
                grads.append(grad or self._zero_grads(chunk, q))
        if not needs_input_grad:
            return None
        dq, dk, dv = (_concatenated(of_chunks, dim=1)[None] for of_chunks in zip(*grads, strict=True))
        return (None, None, dv) if self.run.relevance_rows is True else (dq, dk, dv)

    def _zero_grads(self, chunk: SequenceChunk, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of a chunk that is not explained."""
        K = chunk.slot.keys(self.index, chunk.start, chunk.end)
        V = chunk.slot.values(self.index, chunk.start, chunk.end)
        return torch.zeros_like(query), torch.zeros_like(K), torch.zeros_like(V)

    def _explain(
        self, i: int, chunk: SequenceChunk, explain: ExplainSpec, query: Tensor, w: Tensor, *, needs_input_grad: bool
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Add one chunk's maps and return its gradients.

        query [H, T, D], w = dl/do [H, T, Dv] -> dq [H, T, D], dk [G, T, D], dv [G, T, Dv]
        """
        forward = self.states.pop(i, None) or self._recompute(i, query)
        first = self.form.first_visible(chunk.start)
        w = grouped(w, forward.K.shape[0]).to(forward.q.dtype)
        U = value_gradients(forward, w)
        if self.index in explain.selected:
            unrotated = self._unrotated(chunk, first, forward) if explain.needs_unrotated else None
            explained = replace(forward, sources=sources(first, U)) if explain.excludes_sink else forward
            maps = in_pass_method(explain.switches).layer_maps(explained, w, U, explain.switches, unrotated)
            self.run.add_maps(i, first, self.form.window, maps)
        if not needs_input_grad:
            return None
        if explain.propagates_relevance:
            dq, dk, _ = self._zero_grads(chunk, query)
            return dq, dk, own_value_gradient(forward, w, chunk.start - first).to(query.dtype)
        gradients = attention_backward(forward, w, U, chunk.start - first)
        return gradients.dq.flatten(0, 1).to(query.dtype), gradients.dk.to(query.dtype), gradients.dv.to(query.dtype)

    def _recompute(self, i: int, query: Tensor) -> AttentionState:
        """The forward pass once more, with all products. query: [H, T, D]"""
        compute = torch.promote_types(query.dtype, torch.float32)
        _, K, V, visible = self.visible_keys(i)
        q = grouped(query, K.shape[0]).to(compute)
        return attend(q, K.to(compute), V.to(compute), visible, self.form)

    def _unrotated(self, chunk: SequenceChunk, first: int, forward: AttentionState) -> tuple[Tensor, Tensor]:
        """Queries [G, r, T, D] and keys [G, N, D] before the rotary embedding."""
        table, q = self.run.rotary_of[self.index], forward.q
        queries = unrotated(self.module, q.flatten(0, 1)[None], *chunk.slot.rotary(table, chunk.start, chunk.end))
        keys = unrotated(self.module, forward.K[None], *chunk.slot.rotary(table, first, chunk.end))
        return queries.view(q.shape), keys[0]


def _concatenated(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """`torch.cat`, without a copy of a single tensor."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tuple(tensors), dim)


def _domain(chunk: SequenceChunk, first: int, visible: Tensor | None, device: torch.device) -> Tensor | None:
    """The keys over which a chunk's similarities are normalised in one layer; None for all. [T, N] or [1, N], bool"""
    explain = chunk.explain
    chosen = None if explain is None else explain.domain
    if explain is not None and explain.excludes_sink:
        chosen = torch.ones(chunk.end, dtype=torch.bool) if chosen is None else chosen.clone()
        chosen[:1] = False
    if chosen is None:
        return visible
    inside = torch.nn.functional.pad(chosen, (0, chunk.end - len(chosen)))[None, first : chunk.end].to(device)
    return inside if visible is None else inside & visible


def sources(first: int, U: Tensor) -> Tensor:
    """Which of the keys of U [.., N], from position `first` on, are not the sequence's first token. [N], bool"""
    return torch.arange(first, first + U.shape[-1], device=U.device) != 0
