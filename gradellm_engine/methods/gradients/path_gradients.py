"""Gradients along the straight path from a baseline to the prompt's embeddings, for the methods that average them.

At alpha, the prompt's embeddings are x' + alpha (x - x'); the completion's stay as they are.
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
    """Where gradients are taken.

    Attributes:
        alphas: places on the path, 0 at the baseline. [A]
        weights: what each counts; they sum to 1. [A]
    """

    alphas: Tensor
    weights: Tensor


@dataclass
class Averages:
    """What came of some steps, over the places on the path.

    Attributes:
        gradients: the weighted mean of gradients. [steps, m, h]
        squares: the weighted mean of squared signed scores. [steps, m]
        scores: the weighted mean of signed scores, (x - x') . gradient. [steps, m]
    """

    gradients: Tensor
    squares: Tensor
    scores: Tensor


Errors = Callable[[Averages, Tensor], Tensor]
"""From the averages, and what the objective gains from the baseline to the prompt [steps], to errors [steps]."""


def path_rows(
    model: CompletionModel, switches: GradientSwitches, baseline_ids: Sequence[int], path: Path, errors: Errors
) -> ScoreStream:
    """(x_i - x'_i) times the mean gradient along the path, its norm over channels or their sum; with errors.

    Steps whose gradients do not fit the memory together are taken in turns, each along the whole path.
    """
    given, m = model.given, model.given.num_prompt_tokens
    baseline = baseline_embeddings(model, baseline_ids)
    difference = model.embeddings[:m] - baseline  # [m, h]
    compute = torch.promote_types(difference.dtype, torch.float32)
    gained = _gained(model, switches, baseline)
    bytes_a_step = m * difference.shape[1] * compute.itemsize
    steps_at_once = max(1, min(given.num_steps, model.memory // 4 // bytes_a_step))
    done, num_turns = 0.0, -(-given.num_steps // steps_at_once)
    for first in range(0, given.num_steps, steps_at_once):
        turn = range(first, min(given.num_steps, first + steps_at_once))
        averages = Averages(
            gradients=torch.zeros((len(turn), *difference.shape), dtype=compute, device=model.device),
            squares=torch.zeros((len(turn), m), dtype=compute, device=model.device),
            scores=torch.zeros((len(turn), m), dtype=compute, device=model.device),
        )
        for share in _along(model, switches, baseline, difference, path, turn, averages):
            done += share / num_turns
            yield min(done, 1.0)
        rows = aggregate(difference * averages.gradients, switches.aggregation)
        for step, row, error in zip(turn, rows, errors(averages, gained[list(turn)]).tolist(), strict=True):
            yield StepScores(step, prefix_scores(row, given, step), error)


def _gained(model: CompletionModel, switches: GradientSwitches, baseline: Tensor) -> Tensor:
    """The objective of the prompt less that of the baseline. [n]"""
    with torch.no_grad():
        after, before = (model.values(_at(model, baseline, alpha)[None], switches.objective)[0] for alpha in (1.0, 0.0))
    return (after - before).to(model.device)


def _at(model: CompletionModel, baseline: Tensor, alpha: float) -> Tensor:
    """Embeddings at one place of the path. [T, h]"""
    embeddings = model.embeddings.clone()
    m = len(baseline)
    embeddings[:m] = baseline + alpha * (embeddings[:m] - baseline)
    return embeddings


def _along(
    model: CompletionModel,
    switches: GradientSwitches,
    baseline: Tensor,
    difference: Tensor,
    path: Path,
    turn: range,
    averages: Averages,
) -> Iterator[float]:
    """Add up the gradients of some steps along the path; yields the shares of the work that are done."""
    m, count = len(baseline), len(path.alphas)
    at_once = model.sequences_a_pass(graph=True)
    for start in range(0, count, at_once):
        alphas, weights = path.alphas[start : start + at_once], path.weights[start : start + at_once]
        with torch.enable_grad():
            x = torch.stack([_at(model, baseline, alpha) for alpha in alphas.tolist()]).requires_grad_()
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
    """What all tokens' signed scores come to. [steps, m] -> [steps]"""
    return averages.scores.sum(-1)
