"""In-pass methods against attention weights and gradients of Transformers' own model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gradellm_engine import AttributionSettings, Delivery, Sampling, Sources
from gradellm_engine.attribution.attention_weights import Attention
from gradellm_engine.attribution.grad_sam import GradSam
from gradellm_engine.methods.random import Random
from support.methods.reference_case import PROMPT, Case, scores_of
from support.oracle import relative_error

MakeCase = Callable[..., Case]
TOLERANCE = 1e-5


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"])
def test_attention_equals_transformers_weights(case: MakeCase, family: str) -> None:
    subject = case(family, "float32")
    every = subject.rows(Attention(layers=None))
    for row, mean, (ids, _) in zip(subject.rows(Attention()), every, subject.prefixes(), strict=True):
        weights = subject.attentions(ids)
        assert relative_error(row, weights[-1][:, -1].mean(0)) <= TOLERANCE
        assert relative_error(mean, torch.stack([layer[:, -1].mean(0) for layer in weights]).mean(0)) <= TOLERANCE


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "gpt_oss"])
def test_grad_sam_weighs_attention_with_its_gradient(case: MakeCase, family: str) -> None:
    """The gradient by the attention weights of the last row."""
    subject = case(family, "float32")
    if hasattr(subject.reference, "set_experts_implementation"):
        subject.reference.set_experts_implementation("eager")
    for row, (ids, token_id) in zip(subject.rows(GradSam()), subject.prefixes(), strict=True):
        output = subject.reference(torch.tensor([ids]), output_attentions=True, use_cache=False)
        gradients = torch.autograd.grad(output.logits[0, -1, token_id], output.attentions)
        layers = [
            (weights[0, :, -1] * gradient[0, :, -1].relu()).mean(0)
            for weights, gradient in zip(output.attentions, gradients, strict=True)
        ]
        assert relative_error(row, torch.stack(layers).mean(0)) <= TOLERANCE


@pytest.mark.parametrize("delivery", Delivery)
@pytest.mark.parametrize("switches", [Attention(), GradSam(), Random()])
def test_scores_during_generation_equal_those_of_the_completion(
    case: MakeCase, switches: Any, delivery: Delivery
) -> None:
    subject = case("llama", "float32")
    settings = AttributionSettings(switches, sources=Sources.PREFIX, delivery=delivery, chunk_size=2)
    steps = list(subject.engine.generate(PROMPT, Sampling(max_new_tokens=5), settings))
    afterwards = subject.rows(switches, [step.id for step in steps])
    for step, row in zip(steps, afterwards, strict=True):
        assert relative_error(scores_of(step), row.double()) <= TOLERANCE
