"""GradientSHAP (Lundberg and Lee 2017, as in Captum) with one baseline: gradients at random points of a straight path.

Its expectation equals integrated gradients. The error of a step is the largest standard error of its signed scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradellm_engine.methods.gradients.base import GradientSwitches
from gradellm_engine.methods.gradients.path_gradients import Averages, Path, path_scores
from gradellm_engine.methods.post_hoc import CompletionModel, ScoreStream
from gradellm_engine.methods.sampling_params import SampleSwitches


@dataclass(frozen=True)
class GradientShap(SampleSwitches, GradientSwitches):
    """Switches, besides objective, aggregation, samples and seed.

    Attributes:
        baseline_ids: tokens of the baseline, one for each of the prompt's; empty for zero embeddings.
    """

    name: ClassVar[str] = "gradient_shap"
    samples: int = 50
    baseline_ids: tuple[int, ...] = ()


def explain(model: CompletionModel, switches: GradientShap) -> ScoreStream:
    """(x_i - x'_i) times the mean gradient at uniform random points of the path; error: the sampling error."""
    count = switches.samples
    alphas = torch.tensor(switches.generator("gradient_shap").random(count))

    def errors(averages: Averages, gains: Tensor) -> Tensor:
        variance = (averages.squares - averages.scores.square()).clamp_min(0)  # of one sample
        return (variance / max(1, count - 1)).sqrt().amax(-1)

    path = Path(alphas, torch.full((count,), 1 / count, dtype=torch.float64))
    return path_scores(model, switches, switches.baseline_ids, path, errors)
