"""Input x gradient (Shrikumar et al. 2016): each token's embedding times the gradient of the target by it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from gradellm_engine.methods.gradients.base import GradientSwitches, by_embeddings, gradient_scores
from gradellm_engine.methods.post_hoc import CompletionModel, ScoreStream


@dataclass(frozen=True)
class InputXGradient(GradientSwitches):
    """Switches: objective and aggregation."""

    name: ClassVar[str] = "input_x_gradient"


def explain(model: CompletionModel, switches: InputXGradient) -> ScoreStream:
    """x_i * dl/dx_i, aggregated over channels."""
    forward = partial(by_embeddings, model, switches.objective)
    return gradient_scores(model, forward, lambda gradient: gradient * model.embeddings, switches.aggregation)
