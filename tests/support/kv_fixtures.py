"""Sequences of random tokens in the KV pool, each with a chunk for its next decode step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gradellm_engine.kv_cache.pool import KVSlot
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.base import ExplainSpec, SequenceChunk

MORE_TOKENS = 20  # capacity of a slot beyond its length


def prefilled_slot(runner: ModelRunner, ids: Sequence[int]) -> KVSlot:
    """A KV slot that holds the keys and values of `ids`."""
    slot = runner.pool.allocate(len(ids))
    assert slot is not None
    runner.prefill([SequenceChunk.new(slot, ids)])
    return slot


def filled(runner: ModelRunner, lengths: Sequence[int], explain: ExplainSpec | None = None) -> list[SequenceChunk]:
    """One new token for each of sequences of these lengths, explained by one method or not at all."""
    chunks = []
    for seed, length in enumerate(lengths):
        slot = runner.pool.allocate(length + MORE_TOKENS)
        assert slot is not None
        ids = torch.randint(5, 200, (length + 1,), generator=torch.Generator().manual_seed(seed)).tolist()
        runner.prefill([SequenceChunk.new(slot, ids[:-1])])
        chunks.append(SequenceChunk.new(slot, ids[-1:], explain))
    return chunks


def evict(chunks: Sequence[SequenceChunk]) -> None:
    """Drop the chunks' tokens from their slots, so that the step can run again."""
    for chunk in chunks:
        del chunk.slot.ids[chunk.start :]
