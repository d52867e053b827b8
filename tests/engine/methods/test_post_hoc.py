"""Batches of whole sequences against Transformers' own model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from gradellm_engine.passes.full_sequence import FullSequenceAttention
from support.methods.reference_case import Case
from support.oracle import relative_error

MakeCase = Callable[..., Case]
TOLERANCE = 1e-5


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "mistral"])
def test_batches_of_full_sequences_equal_single_ones(case: MakeCase, family: str) -> None:
    """With the fused kernel, and with the attention that methods watch."""
    subject = case(family, "float32")
    runner = subject.engine.model.runner
    ids = [[*subject.ids, last] for last in (70, 71, 72)]
    embeddings = torch.stack([runner.embed(sequence) for sequence in ids])
    positions = torch.arange(embeddings.shape[1])
    if hasattr(subject.reference, "set_experts_implementation"):
        subject.reference.set_experts_implementation("eager")
    for watch in (None, lambda index, attended: None):
        with torch.no_grad():
            logits = runner.full_sequence_logits(
                embeddings, positions, positions[-1:], FullSequenceAttention(watch=watch)
            )
        expected = subject.logits(torch.stack([subject.embed(sequence) for sequence in ids])).detach()
        assert relative_error(logits[:, 0], expected) <= TOLERANCE
