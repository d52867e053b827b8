"""Integrated gradients (Sundararajan et al. 2017) by Gauss-Legendre quadrature.

Completeness: signed scores sum to the objective's gain from the baseline to the prompt. The error of a step is the
quadrature's deviation from that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.methods.gradients.base import GradientSwitches
from gradellm_engine.methods.gradients.path_gradients import Averages, Path, path_scores, signed_sum
from gradellm_engine.methods.post_hoc import CompletionModel, ScoreStream

MAX_STEPS = 1000


@dataclass(frozen=True)
class IntegratedGradients(GradientSwitches):
    """Switches, besides objective and aggregation.

    Attributes:
        steps: quadrature points on the path.
        baseline_ids: tokens of the baseline, one for each of the prompt's; empty for zero embeddings.
    """

    name: ClassVar[str] = "integrated_gradients"
    steps: int = 50
    baseline_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.steps <= MAX_STEPS:
            raise InvalidRequestError("attribution.steps", f"must lie between 1 and {MAX_STEPS}, was {self.steps}")


def explain(model: CompletionModel, switches: IntegratedGradients) -> ScoreStream:
    """(x_i - x'_i) times the integral of the gradient along the path; error: the completeness error."""
    nodes, weights = np.polynomial.legendre.leggauss(switches.steps)  # for the interval [-1, 1]

    def errors(averages: Averages, gains: Tensor) -> Tensor:
        return (signed_sum(averages) - gains).abs()

    path = Path(torch.tensor((nodes + 1) / 2), torch.tensor(weights / 2))
    return path_scores(model, switches, switches.baseline_ids, path, errors)
