"""Attention rollout against Transformers' attention weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from gradellm_engine.methods.attention_rollout import AttentionRollout
from support.methods.reference_case import Case
from support.oracle import relative_error

MakeCase = Callable[..., Case]
TOLERANCE = 1e-5


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_oss"])
def test_rollout_is_the_product_of_layers(case: MakeCase, family: str) -> None:
    subject = case(family, "float32")
    if hasattr(subject.reference, "set_experts_implementation"):
        subject.reference.set_experts_implementation("eager")
    for row, (ids, _) in zip(subject.rows(AttentionRollout()), subject.prefixes(), strict=True):
        product = torch.eye(len(ids), dtype=torch.float64)
        for weights in subject.attentions(ids):
            mean = weights.mean(0)
            product = (mean / mean.sum(-1, keepdim=True) + torch.eye(len(ids))) / 2 @ product
        assert relative_error(row, product[-1]) <= TOLERANCE
        assert row.sum().item() == pytest.approx(1, abs=1e-5)
