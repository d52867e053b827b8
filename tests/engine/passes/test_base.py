"""Chunks of sequences, and a layer's attention as a node of the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gradellm_engine.attribution.grad_sam import GradSam
from gradellm_engine.kv_cache.pool import KVPool, KVSlot
from gradellm_engine.layers.rotary_switch import encode_positions
from gradellm_engine.params import GradEllm, Rotary, Similarity
from gradellm_engine.passes.base import ExplainSpec, SequenceChunk, keeps_products, layer_attention_output

Slots = Callable[..., list[KVSlot]]
EXPLAIN = ExplainSpec(GradSam(layers=(0, 2)))


def test_new_tokens_follow_those_of_the_slot(slots: Slots) -> None:
    (slot,) = slots(5)
    chunk = SequenceChunk.new(slot, [7, 8, 9], EXPLAIN, replay_length=4)
    assert (chunk.start, chunk.end, chunk.is_new, chunk.replay_length) == (5, 8, True, 4)
    assert SequenceChunk.new(slot, [7]).explain is None


def test_a_replay_reads_the_slot_s_tokens(slots: Slots) -> None:
    _, slot = slots(2, 5)
    chunk = SequenceChunk.replay(slot, 2, 5, EXPLAIN)
    assert (chunk.ids, chunk.start, chunk.end, chunk.is_new) == ([102, 103, 104], 2, 5, False)


@pytest.mark.parametrize("is_long", [False, True])
def test_last_positions_tell_which_rotary_factors_the_slot_has(is_long: bool) -> None:
    slot = KVSlot(KVPool([], [], 9), 0, 9, is_long=is_long)
    chunk = SequenceChunk(slot, [1, 2, 3], None, 4, is_new=True)
    assert chunk.last_positions(2) == encode_positions([5, 6], is_long=is_long)
    assert chunk.last_positions(5) == encode_positions([2, 3, 4, 5, 6], is_long=is_long)
    assert (chunk.last_positions(2) == [5, 6]) != is_long


def test_only_unrotated_similarities_need_unrotated_queries() -> None:
    rotaries = {
        rotary: ExplainSpec(GradEllm(similarity=Similarity.COSINE, rotary=rotary)).needs_unrotated for rotary in Rotary
    }
    assert rotaries == {Rotary.ROTATED: False, Rotary.UNROTATED: True}
    assert not EXPLAIN.needs_unrotated
    assert EXPLAIN.selected == (0, 2)


# A layer in the graph -----------------------------------------------------------------------------------------------


class Doubling:
    """A layer whose attention output is twice the query, with made-up gradients of keys and values."""

    def __init__(self) -> None:
        self.gradients: list[tuple[Tensor, bool]] = []

    def output(self, query: Tensor) -> Tensor:
        assert not query.requires_grad
        return 2 * query.transpose(1, 2)

    def backward(
        self, query: Tensor, gradient: Tensor, *, needs_input_grad: bool
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        self.gradients.append((gradient, needs_input_grad))
        if not needs_input_grad:
            return None
        dq = 2 * gradient.transpose(1, 2)
        return dq, torch.full_like(dq, 10), torch.full_like(dq, 100)


class Anchored:
    """A pass that explains the layers from `lowest` on."""

    relevance_rows = False

    def __init__(self, lowest: int, *, has_graph: bool) -> None:
        self.lowest = lowest
        self.graph_anchor = torch.zeros((), requires_grad=True) if has_graph else None


def run_layers(run: Any, num_layers: int) -> tuple[Tensor, list[Doubling]]:
    """Layers in a row; a layer's queries, keys and values are three times the output below."""
    layers, x = [Doubling() for _ in range(num_layers)], torch.ones(1, 2, 3, 4)
    for index, layer in enumerate(layers):
        qkv = 3 * x
        x = layer_attention_output(run, layer, index, qkv, qkv, qkv).transpose(1, 2)
    return x, layers


def test_the_graph_starts_at_the_lowest_explained_layer() -> None:
    """Each layer above gets its gradient; the sum of query, key and value gradients goes down."""
    x, (below, lowest, above) = run_layers(Anchored(1, has_graph=True), 3)
    assert torch.equal(x, torch.full_like(x, 6**3))
    torch.autograd.backward(x.sum())
    assert below.gradients == []
    ((gradient, needs_input_grad),) = above.gradients
    assert needs_input_grad
    assert torch.equal(gradient, torch.ones(1, 3, 2, 4))
    ((gradient, needs_input_grad),) = lowest.gradients
    assert not needs_input_grad
    assert torch.equal(gradient, torch.full((1, 3, 2, 4), 3 * (2 + 10 + 100.0)))


def test_without_an_anchor_there_is_no_graph() -> None:
    x, _ = run_layers(Anchored(0, has_graph=False), 2)
    assert not x.requires_grad


@pytest.mark.parametrize(
    ("dtype", "limit", "kept"),
    [(torch.float32, 24, True), (torch.float64, 24, True), (torch.float32, 23, False), (torch.bfloat16, 24, False)],
)
def test_few_exact_products_are_kept(dtype: torch.dtype, limit: int, kept: bool) -> None:
    q, K = torch.zeros(2, 2, 1, 8, dtype=dtype), torch.zeros(2, 6, 8, dtype=dtype)
    assert keeps_products(q, K, limit) is kept
