"""Saliency (Simonyan et al. 2014): the gradient of the target by each token's embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gradellm_engine.methods.afterwards import WholeModel, Work
from gradellm_engine.methods.gradients import GradientSwitches, gradient_rows, leaf


@dataclass(frozen=True)
class Saliency(GradientSwitches):
    """Objective and aggregation."""

    name: ClassVar[str] = "saliency"


def explain(model: WholeModel, switches: Saliency) -> Work:
    """dl/dx_i, its norm over channels or their sum."""

    def forward() -> tuple[Tensor, Tensor]:
        x = leaf(model.embeddings)
        return model.values(x, switches.objective)[0], x

    return gradient_rows(model, forward, lambda gradient: gradient, switches.aggregation)
