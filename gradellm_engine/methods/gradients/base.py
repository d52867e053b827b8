"""What gradient methods share: one forward pass for all steps of a completion, backward passes in batches."""

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
    """How a token's numbers, one for each channel of its embedding, become one score."""

    NORM = "norm"
    SUM = "sum"


@dataclass(frozen=True)
class GradientSwitches(ObjectiveSwitches):
    """Of a gradient method.

    Attributes:
        aggregation: the L2 norm over channels, or their signed sum.
    """

    aggregation: Aggregation = Aggregation.NORM

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("attribution.aggregation", self.aggregation, Aggregation)


def aggregate(channels: Tensor, aggregation: Aggregation) -> Tensor:
    """[.., h] -> [..]"""
    return channels.sum(-1) if aggregation is Aggregation.SUM else channels.norm(dim=-1)


def gradient_rows(
    model: CompletionModel,
    forward: Callable[[], tuple[Tensor, Tensor]],
    channels: Callable[[Tensor], Tensor],
    aggregation: Aggregation,
) -> ScoreStream:
    """The rows of a method that is one gradient a step.

    Args:
        model: the model, with the completion.
        forward: makes the steps' values [n], and what they are differentiated by [1, T, h].
        channels: from gradients [T, h] to what is aggregated over channels [T, h].
        aggregation: how.
    """
    given = model.given
    with torch.enable_grad():
        values, inputs = forward()
    yield 1 / (1 + given.num_steps)
    for steps, gradients in model.gradients(values, inputs):
        for step, gradient in zip(steps, gradients[:, 0], strict=True):
            yield StepScores(step, aggregate(channels(gradient), aggregation)[: given.prefix(step)])
        yield (1 + steps.stop) / (1 + given.num_steps)


def by_embeddings(
    model: CompletionModel, objective: Objective, run: SequenceAttention | None = None
) -> tuple[Tensor, Tensor]:
    """The steps' values, and the embeddings to differentiate them by. [n], [1, T, h]"""
    x = model.embeddings.detach()[None].clone().requires_grad_()
    return model.values(x, objective, run)[0], x
