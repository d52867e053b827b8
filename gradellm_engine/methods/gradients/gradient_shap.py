"""GradientSHAP (Lundberg and Lee 2017, as Captum has it) with one baseline: the gradient at random places of the path.

Its expectation is that of integrated gradients. The error of a row is the largest standard error of its signed scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradellm_engine.methods.gradients.base import GradientSwitches
from gradellm_engine.methods.gradients.path_gradients import Averages, Path, path_rows
from gradellm_engine.methods.post_hoc import CompletionModel, ScoreStream
from gradellm_engine.methods.sampling_params import SampleSwitches


@dataclass(frozen=True)
class GradientShap(SampleSwitches, GradientSwitches):
    """Beside objective, aggregation, samples and seed:

    Attributes:
        baseline_ids: tokens in place of the prompt's at the path's beginning; zero embeddings where there are none.
    """

    name: ClassVar[str] = "gradient_shap"
    samples: int = 50
    baseline_ids: tuple[int, ...] = ()


def explain(model: CompletionModel, switches: GradientShap) -> ScoreStream:
    """(x_i - x'_i) times the mean gradient at uniform random places of the path; error: of sampling."""
    count = switches.samples
    alphas = torch.tensor(switches.draws("gradient_shap").random(count))

    def errors(averages: Averages, gained: Tensor) -> Tensor:
        variance = (averages.squares - averages.scores.square()).clamp_min(0)  # of one sample
        return (variance / max(1, count - 1)).sqrt().amax(-1)

    path = Path(alphas, torch.full((count,), 1 / count, dtype=torch.float64))
    return path_rows(model, switches, switches.baseline_ids, path, errors)
