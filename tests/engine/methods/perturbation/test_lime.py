"""LIME against the exact fit over all subsets of a short prompt."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from gradellm_engine import AttributionSettings
from gradellm_engine.methods.perturbation.lime import KERNEL_WIDTH, Lime, fit, sample_masks
from support.methods.reference_case import Case, error_of, scores_of

MakeCase = Callable[..., Case]
SHORT = "A fox."  # seven tokens with BOS: all subsets can be enumerated


def exact_lime(case: Case, ids: list[int], m: int, token_id: int) -> Tensor:
    """The fit over all subsets, weighted by their probability. [m]"""
    kept = torch.tensor(list(itertools.product([False, True], repeat=m)))
    kept = kept[kept.sum(-1) < m]  # without the prompt itself, a single sample of many
    removed = m - kept.sum(-1)
    drawn = torch.tensor([1 / m / math.comb(m, int(count)) for count in removed], dtype=torch.float64)
    distance = 1 - (kept.sum(-1) / m).sqrt().double()
    weights = drawn * torch.exp(-(distance**2) / (2 * KERNEL_WIDTH**2))
    embeddings = case.embed(ids).repeat(len(kept), 1, 1)
    embeddings[:, :m][~kept] = 0
    with torch.no_grad():
        values = case.logits(embeddings)[:, token_id]
    design = torch.cat((torch.ones(len(kept), 1), kept), dim=1).double()
    root = weights.sqrt()[:, None]
    solution: Tensor = torch.linalg.lstsq(root * design, root * values[:, None]).solution
    return solution[1:, 0]


def test_lime_is_within_its_error_of_the_exact_fit(case: MakeCase) -> None:
    subject = case("llama", "float32")
    ids = subject.engine.tokenize(SHORT).ids
    exact = exact_lime(subject, ids, len(ids), 70)
    misses, errors = 0, []
    for seed in range(8):
        (step,) = subject.engine.attribute(SHORT, [70], settings(Lime(samples=2000, seed=seed)))
        difference = (scores_of(step).double() - exact).abs().max().item()
        errors.append(error_of(step))
        misses += difference > 3 * error_of(step)
        assert difference <= 6 * error_of(step)
    assert misses <= 1
    (step,) = subject.engine.attribute(SHORT, [70], settings(Lime(samples=200)))
    assert error_of(step) > 2 * max(errors)  # the error falls as 1 / sqrt(samples)


def settings(switches: Lime) -> AttributionSettings:
    return AttributionSettings(method=switches)


def test_lime_recovers_a_linear_model() -> None:
    kept = sample_masks(Lime(samples=100), 6).double()
    slopes = torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None]
    found, errors = fit(kept, 3 + kept @ slopes, torch.rand(100, dtype=torch.float64) + 0.1)
    assert torch.allclose(found, slopes)
    assert errors.max() <= 1e-9


def test_lime_draws_the_number_of_tokens_uniformly(case: MakeCase) -> None:
    kept = sample_masks(Lime(samples=6001), 5)
    assert kept[0].all()
    removed = (~kept[1:]).sum(-1)
    assert [round((removed == count).double().mean().item(), 1) for count in range(1, 6)] == [0.2] * 5
    assert (kept[1:].double().mean(0) - 0.4).abs().max() <= 0.03
