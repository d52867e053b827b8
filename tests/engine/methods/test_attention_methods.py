"""Methods that look at attention and values, against hooks on Transformers' own model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gradellm_engine import AttributionSettings, Delivery, Sampling, Sources
from gradellm_engine.attribution.attention_weights import Attention
from gradellm_engine.attribution.grad_sam import GradSam
from gradellm_engine.methods.attention_rollout import AttentionRollout
from gradellm_engine.methods.perturbation.value_zeroing import ValueZeroing
from gradellm_engine.methods.random import Random
from gradellm_engine.passes.full_sequence import FullSequenceAttention
from support.oracle import relative_error
from support.reference_case import COMPLETION, PROMPT, Case, scores_of

MakeCase = Callable[..., Case]
TOLERANCE = 1e-5


def attentions(case: Case, ids: list[int]) -> list[Tensor]:
    """Every layer's weights. [H, S, S] each"""
    with torch.no_grad():
        output = case.reference(torch.tensor([ids]), output_attentions=True, use_cache=False)
    return [weights[0] for weights in output.attentions]


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"])
def test_attention_is_what_transformers_puts_out(case: MakeCase, family: str) -> None:
    subject = case(family, "float32")
    every = subject.rows(Attention(layers=None))
    for row, mean, (ids, _) in zip(subject.rows(Attention()), every, subject.prefixes(), strict=True):
        weights = attentions(subject, ids)
        assert relative_error(row, weights[-1][:, -1].mean(0)) <= TOLERANCE
        assert relative_error(mean, torch.stack([layer[:, -1].mean(0) for layer in weights]).mean(0)) <= TOLERANCE


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "gpt_oss"])
def test_grad_sam_weighs_attention_with_its_gradient(case: MakeCase, family: str) -> None:
    """The gradient by a weight of the last row, all else held, is what a nudge to it does."""
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


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_oss"])
def test_rollout_is_the_product_of_layers(case: MakeCase, family: str) -> None:
    subject = case(family, "float32")
    if hasattr(subject.reference, "set_experts_implementation"):
        subject.reference.set_experts_implementation("eager")
    for row, (ids, _) in zip(subject.rows(AttentionRollout()), subject.prefixes(), strict=True):
        product = torch.eye(len(ids), dtype=torch.float64)
        for weights in attentions(subject, ids):
            mean = weights.mean(0)
            product = (mean / mean.sum(-1, keepdim=True) + torch.eye(len(ids))) / 2 @ product
        assert relative_error(row, product[-1]) <= TOLERANCE
        assert row.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("layers", [None, 1, (0, 2)])
@pytest.mark.parametrize("family", ["llama", "mistral", "opt"])
def test_value_zeroing_equals_zeroing_by_hand(
    case: MakeCase, family: str, layers: int | tuple[int, ...] | None
) -> None:
    subject = case(family, "float32")
    runner = subject.reference.model.runner if family == "opt" else subject.reference.model
    chosen = (0, 1, 2) if layers is None else (2,) if layers == 1 else (0, 2)

    def outputs(ids: list[int], zeroed: tuple[int, int] | None = None) -> list[Tensor]:
        """What every layer puts out at the last position, with one layer's value of one token zero."""
        noted: list[Tensor] = []
        hooks = [
            block.register_forward_hook(
                lambda _m, _a, output: noted.append((output if isinstance(output, Tensor) else output[0])[0, -1])
            )
            for block in runner.layers
        ]
        if zeroed is not None:

            def zero(_m: Any, _a: Any, values: Tensor) -> Tensor:
                values = values.clone()
                values[0, zeroed[1]] = 0
                return values

            hooks.append(runner.layers[zeroed[0]].self_attn.v_proj.register_forward_hook(zero))
        with torch.no_grad():
            subject.reference(torch.tensor([ids]), use_cache=False)
        for hook in hooks:
            hook.remove()
        return noted

    for row, (ids, _) in zip(subject.rows(ValueZeroing(layers=layers)), subject.prefixes(), strict=True):
        own = outputs(ids)
        expected = torch.zeros(len(ids), dtype=torch.float64)
        for index in chosen:
            for token in range(len(ids)):
                changed = outputs(ids, (index, token))[index]
                expected[token] += 1 - torch.cosine_similarity(changed, own[index], dim=0)
        # A cosine near 1 has no digits beyond float32's behind the comma.
        assert (row.double() - expected / len(chosen)).abs().max() <= 1e-6


def test_random_is_a_pure_function_of_seed_and_step(case: MakeCase) -> None:
    subject = case("llama")
    rows = subject.rows(Random(seed=5))
    again = subject.steps(Random(seed=5), COMPLETION[:2])
    assert [row.tolist() for row in rows[:2]] == [scores_of(step).tolist() for step in again]
    assert rows[0].tolist() != rows[1][: len(rows[0])].tolist()
    assert rows[0].tolist() != subject.rows(Random())[0].tolist()
    numbers = torch.cat(subject.rows(Random(), list(range(70, 90))))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert numbers.mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("delivery", Delivery)
@pytest.mark.parametrize("switches", [Attention(), GradSam(), Random()])
def test_methods_within_a_pass_explain_while_text_is_generated(
    case: MakeCase, switches: Any, delivery: Delivery
) -> None:
    subject = case("llama", "float32")
    settings = AttributionSettings(switches, sources=Sources.PREFIX, delivery=delivery, chunk_size=2)
    steps = list(subject.engine.generate(PROMPT, Sampling(max_new_tokens=5), settings))
    afterwards = subject.rows(switches, [step.id for step in steps])
    for step, row in zip(steps, afterwards, strict=True):
        assert relative_error(scores_of(step), row.double()) <= TOLERANCE


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "mistral"])
def test_batches_of_whole_sequences_are_those_sequences(case: MakeCase, family: str) -> None:
    """By a stock kernel and by hand."""
    subject = case(family, "float32")
    runner = subject.engine.model.runner
    ids = [[*subject.ids, last] for last in (70, 71, 72)]
    embeddings = torch.stack([runner.embed(its) for its in ids])
    positions = torch.arange(embeddings.shape[1])
    if hasattr(subject.reference, "set_experts_implementation"):
        subject.reference.set_experts_implementation("eager")
    for watch in (None, lambda index, attended: None):
        with torch.no_grad():
            logits = runner.full_sequence_logits(
                embeddings, positions, positions[-1:], FullSequenceAttention(watch=watch)
            )
        expected = subject.logits(torch.stack([subject.embed(its) for its in ids])).detach()
        assert relative_error(logits[:, 0], expected) <= TOLERANCE
