"""Averages of gradients along the straight path from a baseline x' to the prompt's embeddings x.

At alpha, the prompt's embeddings are x' + alpha (x - x'); the completion's embeddings do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradellm_engine.methods.gradients.base import GradientSwitches, aggregate
from gradellm_engine.methods.post_hoc import (
    CompletionModel,
    ScoreStream,
    StepScores,
    baseline_embeddings,
    prefix_scores,
)


@dataclass(frozen=True)
class Path:
    """The points at which gradients are taken.

    Attributes:
        alphas: 0 at the baseline, 1 at the prompt. [A]
        weights: of the points; they sum to 1. [A]
    """

    alphas: Tensor
    weights: Tensor


@dataclass
class Averages:
    """Averages over the points of the path, for some steps.

    Attributes:
        gradients: the weighted mean of gradients. [steps, m, h]
        squares: the weighted mean of squared signed scores. [steps, m]
        scores: the weighted mean of signed scores, (x - x') . gradient. [steps, m]
    """

    gradients: Tensor
    squares: Tensor
    scores: Tensor


Errors = Callable[[Averages, Tensor], Tensor]
"""Errors [steps] from the averages and the objective's gain from the baseline to the prompt [steps]."""


def path_scores(
    model: CompletionModel, switches: GradientSwitches, baseline_ids: Sequence[int], path: Path, errors: Errors
) -> ScoreStream:
    """(x_i - x'_i) times the mean gradient along the path, aggregated over channels, with errors.

    Where the gradients of all steps do not fit the memory together, groups of steps take turns along the whole path.
    """
    completion, m = model.completion, model.completion.num_prompt_tokens
    baseline = baseline_embeddings(model, baseline_ids)
    difference = model.embeddings[:m] - baseline  # [m, h]
    compute = torch.promote_types(difference.dtype, torch.float32)
    gains = _gains(model, switches, baseline)
    bytes_a_step = m * difference.shape[1] * compute.itemsize
    steps_at_once = max(1, min(completion.num_steps, model.memory // 4 // bytes_a_step))
    done, num_turns = 0.0, -(-completion.num_steps // steps_at_once)
    for first in range(0, completion.num_steps, steps_at_once):
        turn = range(first, min(completion.num_steps, first + steps_at_once))
        averages = Averages(
            gradients=torch.zeros((len(turn), *difference.shape), dtype=compute, device=model.device),
            squares=torch.zeros((len(turn), m), dtype=compute, device=model.device),
            scores=torch.zeros((len(turn), m), dtype=compute, device=model.device),
        )
        for share in _accumulate(model, switches, baseline, difference, path, turn, averages):
            done += share / num_turns
            yield min(done, 1.0)
        rows = aggregate(difference * averages.gradients, switches.aggregation)
        steps = completion.steps[turn.start : turn.stop]
        for step, row, error in zip(steps, rows, errors(averages, gains[list(turn)]).tolist(), strict=True):
            yield StepScores(step, prefix_scores(row, completion, step), error)


def _gains(model: CompletionModel, switches: GradientSwitches, baseline: Tensor) -> Tensor:
    """The objective of the prompt minus that of the baseline. [n]"""
    with torch.no_grad():
        after, before = (
            model.values(_point(model, baseline, alpha)[None], switches.objective)[0] for alpha in (1.0, 0.0)
        )
    return (after - before).to(model.device)


def _point(model: CompletionModel, baseline: Tensor, alpha: float) -> Tensor:
    """Embeddings at one point of the path. [T, h]"""
    embeddings = model.embeddings.clone()
    m = len(baseline)
    embeddings[:m] = baseline + alpha * (embeddings[:m] - baseline)
    return embeddings


def _accumulate(
    model: CompletionModel,
    switches: GradientSwitches,
    baseline: Tensor,
    difference: Tensor,
    path: Path,
    turn: range,
    averages: Averages,
) -> Iterator[float]:
    """Add the gradients of a turn's steps, by their places among the explained ones, to `averages`.

    Yields:
        Shares of this work.
    """
    m, count = len(baseline), len(path.alphas)
    at_once = model.sequences_per_pass(graph=True)
    for start in range(0, count, at_once):
        alphas, weights = path.alphas[start : start + at_once], path.weights[start : start + at_once]
        with torch.enable_grad():
            x = torch.stack([_point(model, baseline, alpha) for alpha in alphas.tolist()]).requires_grad_()
            values = model.values(x, switches.objective)[:, turn.start : turn.stop].sum(0)  # [steps]
        w = weights.to(model.device, averages.scores.dtype)
        for steps, gradients in model.gradients(values, x):  # [steps, A, T, h]
            g, rows = gradients[:, :, :m].to(averages.scores.dtype), slice(steps.start, steps.stop)
            signed = (g * difference).sum(-1)  # [steps, A, m]
            averages.gradients[rows] += torch.einsum("a,samh->smh", w, g)
            averages.scores[rows] += torch.einsum("a,sam->sm", w, signed)
            averages.squares[rows] += torch.einsum("a,sam->sm", w, signed.square())
            yield len(alphas) / count * len(steps) / len(turn)


def signed_sum(averages: Averages) -> Tensor:
    """The sum of all tokens' signed scores. [steps, m] -> [steps]"""
    return averages.scores.sum(-1)
