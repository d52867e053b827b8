"""ReAGent (Zhao and Shan 2024): tokens are replaced by plausible ones, and importance goes where it hurts.

Each round replaces a random part of the prompt and looks at how much less probable the target becomes, d. The
replaced tokens' importance rises by the log odds that d stands for, log((1 + d) / (1 - d)), that of the others falls by
as much; the scores are the softmax of importance. Replacements are drawn from the model's own prediction of each token
from those before it, where the authors ask a masked language model.

The authors stop when the least important tokens can be replaced without harm; here the number of rounds is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradellm_engine.methods.perturbation.base import changed_values, own_values
from gradellm_engine.methods.post_hoc import CompletionModel, Objective, ScoreStream, StepScores, prefix_scores
from gradellm_engine.methods.sampling_params import SampleSwitches
from gradellm_engine.passes.full_sequence import FullSequenceAttention

REPLACED = 0.3  # of the prompt, in a round


@dataclass(frozen=True)
class ReAgent(SampleSwitches):
    """Samples, here rounds, and seed."""

    name: ClassVar[str] = "reagent"
    samples: int = 100


def explain(model: CompletionModel, switches: ReAgent) -> ScoreStream:
    """The softmax of what the rounds add up to."""
    given, m = model.given, model.given.num_prompt_tokens
    draws = switches.draws("reagent")
    own = own_values(model, Objective.PROB)
    values = own.new_zeros((switches.samples, given.num_steps))
    replaced = torch.zeros((switches.samples, m), dtype=torch.bool)
    uniforms = torch.from_numpy(draws.random((switches.samples, m)))
    for row in replaced:
        row[torch.from_numpy(draws.choice(m, max(1, round(REPLACED * m)), replace=False))] = True
    thresholds = _cumulative(model)

    def changed(sample: int) -> Tensor:
        drawn = torch.searchsorted(thresholds, uniforms[sample, :, None].to(thresholds)).clamp_max(
            thresholds.shape[1] - 1
        )
        embeddings = model.embeddings[:m].clone()
        chosen = replaced[sample].nonzero()[:, 0]
        embeddings[chosen.to(model.device)] = model.runner.embed(drawn[chosen.to(drawn.device), 0].tolist())
        return embeddings

    yield from changed_values(model, switches.samples, changed, Objective.PROB, values)
    lost = (own - values).double().clamp(-1 + 1e-6, 1 - 1e-6).cpu()  # [N, n]
    signs = torch.where(replaced, 1.0, -1.0).double()  # [N, m]
    scores = (signs.T @ (torch.log1p(lost) - torch.log1p(-lost))).softmax(0)  # [m, n]
    for step in range(given.num_steps):
        yield StepScores(step, prefix_scores(scores[:, step].float(), given, step))


def _cumulative(model: CompletionModel) -> Tensor:
    """Distribution functions of the model's prediction of each token of the prompt; the first stays. [m, V]"""
    m = model.given.num_prompt_tokens
    positions = torch.arange(m, device=model.device)
    with torch.no_grad():
        logits = model.runner.full_sequence_logits(
            model.embeddings[None, :m], positions, positions, FullSequenceAttention()
        )[0].float()
        probs = logits.softmax(-1).roll(1, 0)
    probs[0] = 0
    probs[0, model.given.ids[0]] = 1
    return probs.cumsum(-1)
