"""Input x gradient (Shrikumar et al. 2016): each token's embedding times the target's gradient by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gradellm_engine.methods.afterwards import WholeModel, Work
from gradellm_engine.methods.gradients import GradientSwitches, gradient_rows, leaf


@dataclass(frozen=True)
class InputXGradient(GradientSwitches):
    """Objective and aggregation."""

    name: ClassVar[str] = "input_x_gradient"


def explain(model: WholeModel, switches: InputXGradient) -> Work:
    """x_i * dl/dx_i, its norm over channels or their sum."""

    def forward() -> tuple[Tensor, Tensor]:
        x = leaf(model.embeddings)
        return model.values(x, switches.objective)[0], x

    return gradient_rows(model, forward, lambda gradient: gradient * model.embeddings, switches.aggregation)
