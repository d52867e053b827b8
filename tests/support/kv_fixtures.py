"""Sequences of random tokens, each of which is to take its next step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.base import ExplainSpec, SequenceChunk

MORE_TOKENS = 20  # that a sequence may become longer by


def filled(runner: ModelRunner, lengths: Sequence[int], explain: ExplainSpec | None = None) -> list[SequenceChunk]:
    """A new token for sequences of these lengths, all explained in one way or none."""
    parts = []
    for seed, length in enumerate(lengths):
        slot = runner.pool.allocate(length + MORE_TOKENS)
        assert slot is not None
        ids = torch.randint(5, 200, (length + 1,), generator=torch.Generator().manual_seed(seed)).tolist()
        runner.read([SequenceChunk.new(slot, ids[:-1])])
        parts.append(SequenceChunk.new(slot, ids[-1:], explain))
    return parts


def forget(parts: Sequence[SequenceChunk]) -> None:
    """What was read of them is forgotten, so that it can be read again."""
    for part in parts:
        del part.slot.ids[part.start :]
