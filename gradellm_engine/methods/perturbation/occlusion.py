"""Occlusion (Zeiler and Fergus 2014): what the objective loses when a token's embedding is taken away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gradellm_engine.methods.perturbation.base import changed_values, own_values
from gradellm_engine.methods.post_hoc import (
    CompletionModel,
    ObjectiveSwitches,
    ScoreStream,
    StepScores,
    baseline_embeddings,
    prefix_scores,
)


@dataclass(frozen=True)
class Occlusion(ObjectiveSwitches):
    """Beside the objective:

    Attributes:
        baseline_ids: tokens in place of the prompt's; zero embeddings where there are none.
    """

    name: ClassVar[str] = "occlusion"
    baseline_ids: tuple[int, ...] = ()


def explain(model: CompletionModel, switches: Occlusion) -> ScoreStream:
    """l(x) - l(x without token i), for every token of the prompt."""
    given, m = model.given, model.given.num_prompt_tokens
    baseline = baseline_embeddings(model, switches.baseline_ids)
    own = own_values(model, switches.objective)
    values = own.new_zeros((m, given.num_steps))

    def without(token: int) -> Tensor:
        embeddings = model.embeddings[:m].clone()
        embeddings[token] = baseline[token]
        return embeddings

    yield from changed_values(model, m, without, switches.objective, values)
    for step in range(given.num_steps):
        yield StepScores(step, prefix_scores(own[step] - values[:, step], given, step))
