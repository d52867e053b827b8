"""Saliency (Simonyan et al. 2014): the gradient of the target by each token's embedding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from gradellm_engine.methods.gradients.base import GradientSwitches, by_embeddings, gradient_scores
from gradellm_engine.methods.post_hoc import CompletionModel, ScoreStream


@dataclass(frozen=True)
class Saliency(GradientSwitches):
    """Switches: objective and aggregation."""

    name: ClassVar[str] = "saliency"


def explain(model: CompletionModel, switches: Saliency) -> ScoreStream:
    """dl/dx_i, aggregated over channels."""
    forward = partial(by_embeddings, model, switches.objective)
    return gradient_scores(model, forward, lambda gradient: gradient, switches.aggregation)
