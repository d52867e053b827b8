"""What perturbing methods share: the objective of many changed prompts, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gradellm_engine.methods.post_hoc import CompletionModel, Objective


def changed_values(
    model: CompletionModel, count: int, changed: Callable[[int], Tensor], objective: Objective, values: Tensor
) -> Iterator[float]:
    """Fill `values` [count, n] with the objective of `count` changed prompts; yields the share that is done.

    Args:
        model: the model, with the completion.
        count: how many there are.
        changed: the i-th prompt's embeddings. [m, h]
        objective: what is watched.
        values: where it goes.
    """
    m, at_once = model.given.num_prompt_tokens, model.sequences_a_pass()
    for start in range(0, count, at_once):
        chosen = range(start, min(count, start + at_once))
        embeddings = model.embeddings.expand(len(chosen), -1, -1).clone()
        for row, index in enumerate(chosen):
            embeddings[row, :m] = changed(index)
        with torch.no_grad():
            values[chosen.start : chosen.stop] = model.values(embeddings, objective)
        yield chosen.stop / count


def own_values(model: CompletionModel, objective: Objective) -> Tensor:
    """The objective of the prompt as it is. [n]"""
    with torch.no_grad():
        return model.values(model.embeddings[None], objective)[0]
