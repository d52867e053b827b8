"""LIME (Ribeiro et al. 2016) for text: a linear model of the objective over which tokens are there.

Samples are drawn as the authors' text explainer draws them: the prompt itself first, then for each a number of tokens
to take away, uniform from 1 to m, and which. A sample that keeps k of m tokens weighs exp(-d^2 / (2 s^2)) with
d = 1 - sqrt(k / m), the cosine distance to the prompt, and s = 0.25. The scores are the slopes of the weighted least
squares fit; a row's error is the largest standard error of a slope, by the sandwich estimator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradellm_engine.methods.perturbation.base import changed_values
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
    """Beside objective, samples and seed:

    Attributes:
        baseline_ids: tokens in place of those that are taken away; zero embeddings where there are none.
    """

    name: ClassVar[str] = "lime"
    baseline_ids: tuple[int, ...] = ()


def explain(model: CompletionModel, switches: Lime) -> ScoreStream:
    """The slopes of the fit."""
    given, m = model.given, model.given.num_prompt_tokens
    baseline = baseline_embeddings(model, switches.baseline_ids)
    kept = sample_masks(switches, m).to(model.device)  # [N, m]

    def some(sample: int) -> Tensor:
        return torch.where(kept[sample, :, None], model.embeddings[:m], baseline)

    values = torch.zeros((len(kept), given.num_steps), dtype=torch.float32, device=model.device)
    yield from changed_values(model, len(kept), some, switches.objective, values)
    slopes, errors = fit(kept.double().cpu(), values.double().cpu(), kernel(kept).double().cpu())
    for step in range(given.num_steps):
        yield StepScores(step, prefix_scores(slopes[:, step].float(), given, step), float(errors[:, step].max()))


def sample_masks(switches: Lime, num_tokens: int) -> Tensor:
    """Which tokens are there; the prompt itself first. [N, m], bool"""
    draws = switches.draws("lime")
    kept = torch.ones((switches.samples, num_tokens), dtype=torch.bool)
    for row in kept[1:]:
        count = int(draws.integers(1, num_tokens, endpoint=True))
        row[torch.from_numpy(draws.choice(num_tokens, count, replace=False))] = False
    return kept


def kernel(kept: Tensor) -> Tensor:
    """What samples weigh. [N, m] -> [N]"""
    distance = 1 - (kept.sum(-1) / kept.shape[-1]).sqrt()
    return torch.exp(-distance.square() / (2 * KERNEL_WIDTH**2))


def fit(kept: Tensor, values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted least squares with an intercept; where samples do not decide, the smallest slopes.

    Args:
        kept: [N, m]
        values: [N, n]
        weights: [N]

    Returns:
        Slopes and their standard errors. [m, n] each
    """
    center = (weights @ kept) / weights.sum(), (weights @ values) / weights.sum()
    X, y = kept - center[0], values - center[1]  # the intercept is solved for
    inverse = torch.linalg.pinv(X.T @ (weights[:, None] * X), hermitian=True)  # [m, m]
    slopes = inverse @ (X.T @ (weights[:, None] * y))
    influence = inverse @ (X.T * weights)  # of each sample on each slope. [m, N]
    residuals = y - X @ slopes
    return slopes, (influence.square() @ residuals.square()).sqrt()
