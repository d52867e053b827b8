"""Integrated gradients (Sundararajan et al. 2017) by Gauss-Legendre quadrature.

They are complete: signed, the scores sum to what the objective gains from the baseline to the prompt. How far the
quadrature is from that is each row's error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.methods.gradients.base import GradientSwitches
from gradellm_engine.methods.gradients.path_gradients import Averages, Path, path_rows, signed_sum
from gradellm_engine.methods.post_hoc import CompletionModel, ScoreStream

MAX_STEPS = 1000


@dataclass(frozen=True)
class IntegratedGradients(GradientSwitches):
    """Beside objective and aggregation:

    Attributes:
        steps: places on the path.
        baseline_ids: tokens in place of the prompt's at the path's beginning; zero embeddings where there are none.
    """

    name: ClassVar[str] = "integrated_gradients"
    steps: int = 50
    baseline_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.steps <= MAX_STEPS:
            raise InvalidRequestError("attribution.steps", f"must lie between 1 and {MAX_STEPS}, was {self.steps}")


def explain(model: CompletionModel, switches: IntegratedGradients) -> ScoreStream:
    """(x_i - x'_i) times the integral of the gradient along the path; error: of completeness."""
    nodes, weights = np.polynomial.legendre.leggauss(switches.steps)  # of the integral from -1 to 1

    def errors(averages: Averages, gained: Tensor) -> Tensor:
        return (signed_sum(averages) - gained).abs()

    path = Path(torch.tensor((nodes + 1) / 2), torch.tensor(weights / 2))
    return path_rows(model, switches, switches.baseline_ids, path, errors)
