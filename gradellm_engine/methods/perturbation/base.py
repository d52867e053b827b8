"""The objective of many perturbed prompts, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gradellm_engine.methods.post_hoc import CompletionModel, Objective


def perturbed_values(
    model: CompletionModel, count: int, perturb: Callable[[int], Tensor], objective: Objective, values: Tensor
) -> Iterator[float]:
    """Fill `values` with the objective of `count` perturbed prompts; yields the share that is done.

    Args:
        model: the model for the completion.
        count: number of perturbed prompts.
        perturb: embeddings of the i-th perturbed prompt. [m, h]
        objective: of each step's target.
        values: filled with the objective. [count, n]
    """
    m, at_once = model.completion.num_prompt_tokens, model.sequences_per_pass()
    for start in range(0, count, at_once):
        chosen = range(start, min(count, start + at_once))
        embeddings = model.embeddings.expand(len(chosen), -1, -1).clone()
        for row, index in enumerate(chosen):
            embeddings[row, :m] = perturb(index)
        with torch.no_grad():
            values[chosen.start : chosen.stop] = model.values(embeddings, objective)
        yield chosen.stop / count


def unperturbed_values(model: CompletionModel, objective: Objective) -> Tensor:
    """The objective of the unperturbed prompt. [n]"""
    with torch.no_grad():
        return model.values(model.embeddings[None], objective)[0]
