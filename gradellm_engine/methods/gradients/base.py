"""Gradient methods: one forward pass for all steps of a completion, then one gradient a step, batched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from gradellm_engine.methods.post_hoc import CompletionModel, Objective, ObjectiveSwitches, ScoreStream, StepScores
from gradellm_engine.params import check_choice
from gradellm_engine.passes.full_sequence import SequenceAttention


class Aggregation(StrEnum):
    """How a token's channels [h] become one score: L2 norm or signed sum."""

    NORM = "norm"
    SUM = "sum"


@dataclass(frozen=True)
class GradientSwitches(ObjectiveSwitches):
    """Switches of a gradient method.

    Attributes:
        aggregation: the L2 norm over channels, or their signed sum.
    """

    aggregation: Aggregation = Aggregation.NORM

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("attribution.aggregation", self.aggregation, Aggregation)


def aggregate(channels: Tensor, aggregation: Aggregation) -> Tensor:
    """Scores from channels. [.., h] -> [..]"""
    return channels.sum(-1) if aggregation is Aggregation.SUM else channels.norm(dim=-1)


def gradient_scores(
    model: CompletionModel,
    forward: Callable[[], tuple[Tensor, Tensor]],
    channels: Callable[[Tensor], Tensor],
    aggregation: Aggregation,
) -> ScoreStream:
    """Scores of a method with one gradient a step.

    Args:
        model: the model for the completion.
        forward: computes the steps' values [n], and the tensor to differentiate them by [1, T, h].
        channels: from a step's gradient [T, h] to the channels that are aggregated [T, h].
        aggregation: of channels.
    """
    completion = model.completion
    with torch.enable_grad():
        values, inputs = forward()
    yield 1 / (1 + completion.num_steps)
    for rows, gradients in model.gradients(values, inputs):
        for row, gradient in zip(rows, gradients[:, 0], strict=True):
            step = completion.steps[row]
            yield StepScores(step, aggregate(channels(gradient), aggregation)[: completion.prefix_length(step)])
        yield (1 + rows.stop) / (1 + completion.num_steps)


def by_embeddings(
    model: CompletionModel, objective: Objective, attention: SequenceAttention | None = None
) -> tuple[Tensor, Tensor]:
    """The steps' values, and the embeddings to differentiate them by. -> [n], [1, T, h]"""
    x = model.embeddings.detach()[None].clone().requires_grad_()
    return model.values(x, objective, attention)[0], x
