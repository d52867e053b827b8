"""LIME (Ribeiro et al. 2016) for text: a linear model of the objective over the presence of tokens.

Samples are drawn as by the authors' text explainer: first the prompt itself, then subsets, of which the number of
removed tokens is uniform in 1..m. A sample that keeps k of m tokens has weight exp(-d^2 / (2 s^2)) with
d = 1 - sqrt(k / m), the cosine distance to the prompt, and s = 0.25. The scores are the slopes of the weighted least
squares fit; a step's error is the largest standard error of a slope, by the sandwich estimator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradellm_engine.methods.perturbation.base import perturbed_values
from gradellm_engine.methods.post_hoc import (
    CompletionModel,
    ObjectiveSwitches,
    ScoreStream,
    StepScores,
    baseline_embeddings,
    prefix_scores,
)
from gradellm_engine.methods.sampling_params import SampleSwitches

KERNEL_WIDTH = 0.25


@dataclass(frozen=True)
class Lime(SampleSwitches, ObjectiveSwitches):
    """Switches, besides objective, samples and seed.

    Attributes:
        baseline_ids: replacements of removed tokens, one for each of the prompt's; empty for zero embeddings.
    """

    name: ClassVar[str] = "lime"
    baseline_ids: tuple[int, ...] = ()


def explain(model: CompletionModel, switches: Lime) -> ScoreStream:
    """The slopes of the linear fit."""
    completion, m = model.completion, model.completion.num_prompt_tokens
    baseline = baseline_embeddings(model, switches.baseline_ids)
    kept = sample_masks(switches, m).to(model.device)  # [N, m]

    def perturb(sample: int) -> Tensor:
        return torch.where(kept[sample, :, None], model.embeddings[:m], baseline)

    values = torch.zeros((len(kept), completion.num_steps), dtype=torch.float32, device=model.device)
    yield from perturbed_values(model, len(kept), perturb, switches.objective, values)
    slopes, errors = fit(kept.double().cpu(), values.double().cpu(), kernel(kept).double().cpu())
    for row, step in enumerate(completion.steps):
        yield StepScores(step, prefix_scores(slopes[:, row].float(), completion, step), float(errors[:, row].max()))


def sample_masks(switches: Lime, num_tokens: int) -> Tensor:
    """The tokens that each sample keeps; the first sample keeps all. [N, m], bool"""
    generator = switches.generator("lime")
    kept = torch.ones((switches.samples, num_tokens), dtype=torch.bool)
    for row in kept[1:]:
        count = int(generator.integers(1, num_tokens, endpoint=True))
        row[torch.from_numpy(generator.choice(num_tokens, count, replace=False))] = False
    return kept


def kernel(kept: Tensor) -> Tensor:
    """Weights of samples. [N, m] -> [N]"""
    distance = 1 - (kept.sum(-1) / kept.shape[-1]).sqrt()
    return torch.exp(-distance.square() / (2 * KERNEL_WIDTH**2))


def fit(kept: Tensor, values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted least squares with an intercept; underdetermined slopes have minimum norm.

    Args:
        kept: presence of tokens. [N, m]
        values: objectives of the samples. [N, n]
        weights: of the samples. [N]

    Returns:
        Slopes [m, n] and their standard errors [m, n].
    """
    center = (weights @ kept) / weights.sum(), (weights @ values) / weights.sum()
    X, y = kept - center[0], values - center[1]  # centring solves for the intercept
    inverse = torch.linalg.pinv(X.T @ (weights[:, None] * X), hermitian=True)  # [m, m]
    slopes = inverse @ (X.T @ (weights[:, None] * y))
    influence = inverse @ (X.T * weights)  # of each sample on each slope. [m, N]
    residuals = y - X @ slopes
    return slopes, (influence.square() @ residuals.square()).sqrt()
