"""Gradient methods against Captum's, a prefix at a time, on Transformers' own model; and what they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import (
    DeepLift as CaptumDeepLift,
)
from captum.attr import (
    InputXGradient as CaptumInputXGradient,
)
from captum.attr import (
    IntegratedGradients as CaptumIntegratedGradients,
)
from captum.attr import (
    LayerGradientXActivation as CaptumLayerGradientXActivation,
)
from captum.attr import (
    Saliency as CaptumSaliency,
)
from torch import Tensor, nn

from gradellm_engine import Contrast
from gradellm_engine.methods import post_hoc
from gradellm_engine.methods.gradients.base import Aggregation
from gradellm_engine.methods.gradients.deeplift import DeepLift
from gradellm_engine.methods.gradients.gradient_shap import GradientShap
from gradellm_engine.methods.gradients.input_x_gradient import InputXGradient
from gradellm_engine.methods.gradients.integrated_gradients import IntegratedGradients
from gradellm_engine.methods.gradients.layer_gradient_x_activation import LayerGradientXActivation
from gradellm_engine.methods.gradients.saliency import Saliency
from gradellm_engine.methods.post_hoc import Objective
from gradellm_engine.model.families import FAMILIES
from support.oracle import relative_error
from support.reference_case import PROMPT, Case, error_of

MakeCase = Callable[..., Case]
CONTRAST = Contrast(token_id=80)
# Transformers norms and softmaxes in float32 whatever the model is in.
DTYPES = {"float64": 1e-6, "float32": 1e-5}
AGGREGATED = {Aggregation.NORM: lambda x: x.norm(dim=-1), Aggregation.SUM: lambda x: x.sum(-1)}


class Target(nn.Module):
    """The objective of a token after the last embedding, as Captum calls it."""

    def __init__(self, case: Case, token_id: int, objective: Objective, contrast_id: int | None = None) -> None:
        super().__init__()
        self.model = case.reference
        self._case, self._token_id, self._objective, self._contrast_id = case, token_id, objective, contrast_id

    def forward(self, embeddings: Tensor) -> Tensor:
        logits = self._case.logits(embeddings)
        scores = {
            Objective.LOGIT: logits,
            Objective.LOG_PROB: logits.log_softmax(-1),
            Objective.PROB: logits.softmax(-1),
        }[self._objective]
        return scores[:, self._token_id] - (0 if self._contrast_id is None else scores[:, self._contrast_id])


def compare(case: Case, switches: Any, captums: Callable[[Target, Tensor], Tensor], tolerance: float) -> None:
    """Our rows with Captum's numbers, aggregated alike."""
    for contrast in (None, CONTRAST):
        rows = case.rows(switches, contrast=contrast)
        for row, (ids, token_id) in zip(rows, case.prefixes(), strict=True):
            target = Target(case, token_id, switches.objective, None if contrast is None else contrast.token_id)
            numbers = captums(target, case.embed(ids)[None])[0].detach()
            # A sum over channels that cancels has no digits of its own.
            difference = row.double() - AGGREGATED[switches.aggregation](numbers)
            assert difference.norm() <= tolerance * numbers.abs().sum(-1).norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("aggregation", Aggregation)
@pytest.mark.parametrize("objective", Objective)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_saliency_and_input_x_gradient_equal_captum(
    case: MakeCase, family: str, objective: Objective, aggregation: Aggregation, dtype: str
) -> None:
    subject = case(family, dtype)
    # Captum's saliency takes absolute values by default, channel by channel.
    compare(
        subject, Saliency(objective, aggregation), lambda t, x: CaptumSaliency(t).attribute(x, abs=False), DTYPES[dtype]
    )
    compare(
        subject,
        InputXGradient(objective, aggregation),
        lambda t, x: CaptumInputXGradient(t).attribute(x),
        DTYPES[dtype],
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("aggregation", Aggregation)
@pytest.mark.parametrize("baseline_ids", [(), tuple(range(65, 65 + len(PROMPT) + 1))])
def test_integrated_gradients_equal_captum(
    case: MakeCase, aggregation: Aggregation, baseline_ids: tuple[int, ...], dtype: str
) -> None:
    subject = case("llama", dtype)

    def captums(target: Target, x: Tensor) -> Tensor:
        before = x.clone()
        m = len(subject.ids)
        before[:, :m] = subject.embed(baseline_ids) if baseline_ids else 0
        result: Tensor = CaptumIntegratedGradients(target).attribute(x, before, n_steps=12, method="gausslegendre")
        return result

    switches = IntegratedGradients(aggregation=aggregation, steps=12, baseline_ids=baseline_ids)
    compare(subject, switches, captums, DTYPES[dtype])


def test_integrated_gradients_say_how_far_from_complete_they_are(case: MakeCase) -> None:
    subject = case("gpt2")
    for steps, limit in ((3, None), (200, 1e-3)):
        told = subject.steps(IntegratedGradients(aggregation=Aggregation.SUM, steps=steps))
        for step, (ids, token_id) in zip(told, subject.prefixes(), strict=True):
            after, before = subject.embed(ids), subject.embed(ids)
            before[: len(subject.ids)] = 0
            gained = (subject.logits(after[None]) - subject.logits(before[None]))[0, token_id].item()
            assert step.attribution is not None
            assert error_of(step) == pytest.approx(abs(step.attribution.scores.sum().item() - gained), abs=1e-5)
            assert limit is None or error_of(step) <= limit


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", [None, -1, 0, 2])
def test_layer_gradient_x_activation_equals_captum(case: MakeCase, layer: int | None, dtype: str) -> None:
    subject = case("llama", dtype)

    def captums(target: Target, x: Tensor) -> Tensor:
        if layer == -1:
            result: Tensor = CaptumInputXGradient(target).attribute(x)
            return result
        block = subject.reference.model.layers[1 if layer is None else layer]
        activations: Tensor = CaptumLayerGradientXActivation(target, block).attribute(x)
        return activations

    compare(subject, LayerGradientXActivation(layer=layer), captums, DTYPES[dtype])
    if layer == 2:  # the last one reaches the target at the last position alone
        for row in subject.rows(LayerGradientXActivation(layer=layer)):
            assert row[-1] > 0
            assert not row[:-1].any()


@pytest.mark.parametrize("family", ["opt", "llama", "gpt2"])
def test_deeplift_equals_captum(case: MakeCase, family: str) -> None:
    subject = case(family)

    def captums(target: Target, x: Tensor) -> Tensor:
        before = x.clone()
        before[:, : len(subject.ids)] = 0
        result: Tensor = CaptumDeepLift(target).attribute(x, before)
        return result

    switches = DeepLift(aggregation=Aggregation.SUM)
    compare(subject, switches, captums, 1e-6)
    products = subject.rows(InputXGradient(aggregation=Aggregation.SUM))
    m = len(subject.ids)
    same = [
        relative_error(row[:m], product[:m]) <= 1e-6
        for row, product in zip(subject.rows(switches), products, strict=True)
    ]
    assert all(same) == (family != "opt")  # a ReLU has a rule of its own


def test_gradient_shap_is_within_its_error_of_its_expectation(case: MakeCase) -> None:
    """With one baseline, that is integrated gradients."""
    subject = case("gpt2")
    exact = subject.rows(IntegratedGradients(aggregation=Aggregation.SUM, steps=300))
    misses = 0
    for seed in range(5):
        told = subject.steps(GradientShap(aggregation=Aggregation.SUM, samples=40, seed=seed))
        for step, row in zip(told, exact, strict=True):
            assert step.attribution is not None
            difference = (step.attribution.scores - row).abs().max().item()
            misses += difference > 3 * error_of(step)
            assert difference <= 6 * error_of(step)
    assert misses <= 1
    assert subject.rows(GradientShap(samples=4))[0].tolist() == subject.rows(GradientShap(samples=4))[0].tolist()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_gradients_of_every_family_are_those_of_its_own_attention(case: MakeCase, family: str) -> None:
    subject = case(family, "float32")
    if hasattr(subject.reference, "set_experts_implementation"):
        subject.reference.set_experts_implementation("eager")  # the default refuses float64
    for row, (ids, token_id) in zip(subject.rows(Saliency()), subject.prefixes(), strict=True):
        x = subject.embed(ids)[None].requires_grad_()
        (expected,) = torch.autograd.grad(subject.logits(x)[0, token_id], x)
        assert relative_error(row, expected[0].norm(dim=-1)) <= 1e-5


def test_one_forward_pass_serves_all_steps(case: MakeCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """In however many batches they go back; where a model's operations take no batches, one by one."""
    subject = case("llama")
    completion = list(range(70, 82))
    together = subject.rows(Saliency(), completion)
    passes: list[Tensor] = []
    full_sequence_logits = type(subject.engine.model.runner).full_sequence_logits

    def counted(self: Any, embeddings: Tensor, *args: Any) -> Tensor:
        passes.append(embeddings)
        return full_sequence_logits(self, embeddings, *args)

    monkeypatch.setattr(type(subject.engine.model.runner), "full_sequence_logits", counted)
    for tokens in (1, 50, 100):
        monkeypatch.setattr(post_hoc, "PASS_TOKENS", tokens)
        passes.clear()
        for row, expected in zip(subject.rows(Saliency(), completion), together, strict=True):
            assert relative_error(row, expected) <= 1e-6
        assert len(passes) == 1

    def refuse(*args: Any) -> Any:
        raise RuntimeError("no batching rule")

    monkeypatch.setattr(torch.func, "vmap", refuse)
    for row, expected in zip(subject.rows(Saliency(), completion), together, strict=True):
        assert relative_error(row, expected) <= 1e-6


@pytest.mark.parametrize("memory", [1, 10**9])
def test_paths_in_turns_are_the_same(case: MakeCase, monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    """Where memory is short, sequences and steps are taken in turns."""
    subject = case("llama")
    expected = subject.rows(IntegratedGradients(steps=5))
    monkeypatch.setattr(
        post_hoc.CompletionModel, "sequences_a_pass", lambda self, *, graph=False: 1 if memory == 1 else 7
    )
    original = post_hoc.CompletionModel.__init__

    def short(self: Any, *args: Any) -> None:
        original(self, *args)
        self.memory = memory

    monkeypatch.setattr(post_hoc.CompletionModel, "__init__", short)
    for row, other in zip(subject.rows(IntegratedGradients(steps=5)), expected, strict=True):
        assert relative_error(row, other) <= 1e-6
