"""Relevance propagation: its rules, and that they conserve relevance."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

from gradellm_engine.methods.gradients.relevance import Relevance, relevance_rules
from gradellm_engine.methods.post_hoc import CompletionContext, CompletionModel
from gradellm_engine.passes.full_sequence import FullSequenceAttention
from support.methods.reference_case import Case

MakeCase = Callable[..., Case]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "granite", "olmo2", "phi3", "gemma", "gemma3_text"])
def test_relevance_is_conserved(case: MakeCase, family: str) -> None:
    """The scores of a prefix sum to the explained logit."""
    subject = case(family)
    for row, (ids, token_id) in zip(subject.rows(Relevance()), subject.prefixes(), strict=True):
        with torch.no_grad():
            logit = subject.logits(subject.embed(ids)[None])[0, token_id].item()
        assert row.sum().item() == pytest.approx(logit, rel=1e-5, abs=1e-5)


def test_rules_of_a_gated_block(case: MakeCase) -> None:
    """By hand: half of the relevance through each factor, the activation proportional to its input."""
    subject = case("llama")
    mlp: Any = subject.engine.model.runner.blocks[0].mlp
    x = torch.randn(1, 3, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.enable_grad(), _ruled(subject):
        y = mlp(x)
    assert torch.allclose(y, mlp(x))
    g = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(y, x, g)
    gate, up = mlp.gate_proj(x), mlp.up_proj(x)
    below = g @ mlp.down_proj.weight
    through_gate = below * up * torch.sigmoid(gate) / 2 @ mlp.gate_proj.weight  # silu(z) / z
    through_up = below * torch.nn.functional.silu(gate) / 2 @ mlp.up_proj.weight
    assert torch.allclose(gradient, through_gate + through_up, rtol=1e-6)


def _ruled(subject: Case) -> AbstractContextManager[None]:
    model = subject.engine.model
    return relevance_rules(
        CompletionModel(model.runner, model.family, CompletionContext([1], 1, []), 1, lambda *args: 1)
    )


@pytest.mark.parametrize("family", ["llama", "opt", "cohere", "gemma"])
def test_rules_do_not_change_outputs_and_leave_no_hooks(case: MakeCase, family: str) -> None:
    subject = case(family)
    runner = subject.engine.model.runner
    x = subject.engine.model.runner.embed(subject.ids)[None]
    positions = torch.arange(x.shape[1])

    def logits() -> Tensor:
        with torch.no_grad():
            return runner.full_sequence_logits(x, positions, positions, FullSequenceAttention())

    before, hooks = logits(), [dict(module._forward_hooks) for _, module in runner.named_modules()]
    with _ruled(subject):
        assert torch.allclose(logits(), before, rtol=1e-6, atol=1e-6)
    assert [dict(module._forward_hooks) for _, module in runner.named_modules()] == hooks
