"""Occlusion (Zeiler and Fergus 2014): the drop of the objective when a token's embedding is replaced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gradellm_engine.methods.perturbation.base import perturbed_values, unperturbed_values
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
    """Switches, besides the objective.

    Attributes:
        baseline_ids: replacements, one for each of the prompt's tokens; empty for zero embeddings.
    """

    name: ClassVar[str] = "occlusion"
    baseline_ids: tuple[int, ...] = ()


def explain(model: CompletionModel, switches: Occlusion) -> ScoreStream:
    """l(x) - l(x without token i), for every token of the prompt."""
    completion, m = model.completion, model.completion.num_prompt_tokens
    baseline = baseline_embeddings(model, switches.baseline_ids)
    unperturbed = unperturbed_values(model, switches.objective)
    values = unperturbed.new_zeros((m, completion.num_steps))

    def without(token: int) -> Tensor:
        embeddings = model.embeddings[:m].clone()
        embeddings[token] = baseline[token]
        return embeddings

    yield from perturbed_values(model, m, without, switches.objective, values)
    for row, step in enumerate(completion.steps):
        yield StepScores(step, prefix_scores(unperturbed[row] - values[:, row], completion, step))
