"""ReAGent (Zhao and Shan 2024): importance of tokens from the effect of plausible replacements.

Each round replaces a random part of the prompt and measures d, by how much the target's probability drops. The
importance of the replaced tokens rises by log((1 + d) / (1 - d)), that of the other tokens falls by the same; the
scores are the softmax of the importances. Replacements are drawn from the model's own next-token predictions, where the
authors use a masked language model.

The authors stop when the least important tokens can be replaced without effect; here the number of rounds is a switch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradellm_engine.methods.perturbation.base import perturbed_values, unperturbed_values
from gradellm_engine.methods.post_hoc import CompletionModel, Objective, ScoreStream, StepScores, prefix_scores
from gradellm_engine.methods.sampling_params import SampleSwitches
from gradellm_engine.passes.full_sequence import FullSequenceAttention

REPLACED_SHARE = 0.3  # of the prompt, in each round


@dataclass(frozen=True)
class ReAgent(SampleSwitches):
    """Switches: samples, which are rounds, and seed."""

    name: ClassVar[str] = "reagent"
    samples: int = 100


def explain(model: CompletionModel, switches: ReAgent) -> ScoreStream:
    """The softmax of the importances after all rounds."""
    completion, m = model.completion, model.completion.num_prompt_tokens
    generator = switches.generator("reagent")
    unperturbed = unperturbed_values(model, Objective.PROB)
    values = unperturbed.new_zeros((switches.samples, completion.num_steps))
    replaced = torch.zeros((switches.samples, m), dtype=torch.bool)
    uniforms = torch.from_numpy(generator.random((switches.samples, m)))
    for row in replaced:
        row[torch.from_numpy(generator.choice(m, max(1, round(REPLACED_SHARE * m)), replace=False))] = True
    cumulative = _cumulative_predictions(model)

    def perturb(sample: int) -> Tensor:
        replacements = torch.searchsorted(cumulative, uniforms[sample, :, None].to(cumulative))
        replacements = replacements.clamp_max(cumulative.shape[1] - 1)
        embeddings = model.embeddings[:m].clone()
        chosen = replaced[sample].nonzero()[:, 0]
        embeddings[chosen.to(model.device)] = model.runner.embed(
            replacements[chosen.to(replacements.device), 0].tolist()
        )
        return embeddings

    yield from perturbed_values(model, switches.samples, perturb, Objective.PROB, values)
    drops = (unperturbed - values).double().clamp(-1 + 1e-6, 1 - 1e-6).cpu()  # [N, n]
    signs = torch.where(replaced, 1.0, -1.0).double()  # [N, m]
    scores = (signs.T @ (torch.log1p(drops) - torch.log1p(-drops))).softmax(0)  # [m, n]
    for row, step in enumerate(completion.steps):
        yield StepScores(step, prefix_scores(scores[:, row].float(), completion, step))


def _cumulative_predictions(model: CompletionModel) -> Tensor:
    """Cumulative distributions of the model's prediction of each prompt token; the first token is kept. [m, V]"""
    m = model.completion.num_prompt_tokens
    positions = torch.arange(m, device=model.device)
    with torch.no_grad():
        logits = model.runner.full_sequence_logits(
            model.embeddings[None, :m], positions, positions, FullSequenceAttention()
        )[0].float()
        probs = logits.softmax(-1).roll(1, 0)
    probs[0] = 0
    probs[0, model.completion.ids[0]] = 1
    return probs.cumsum(-1)
