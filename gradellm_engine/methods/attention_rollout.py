"""Attention rollout (Abnar and Zuidema 2020): the product over layers of attention weights mixed with the identity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradellm_engine.attention.ops import AttentionState
from gradellm_engine.methods.post_hoc import CompletionModel, Objective, ScoreStream, StepScores
from gradellm_engine.params import Switches
from gradellm_engine.passes.full_sequence import FullSequenceAttention


@dataclass(frozen=True)
class AttentionRollout(Switches):
    """No switches."""

    name: ClassVar[str] = "attention_rollout"


def explain(model: CompletionModel, switches: AttentionRollout) -> ScoreStream:
    """The explained position's row of the product over layers of (A + I) / 2, A the mean over heads. [m + t]"""
    mixed: dict[int, Tensor] = {}

    def watch(index: int, attended: AttentionState) -> None:
        A = model.runner.mean_of_heads(attended.A[0].mean((0, 1)))  # [T, T]
        A = A / A.sum(-1, keepdim=True)  # a learned attention sink takes a part of each row
        mixed[index] = (A + torch.eye(len(A), dtype=A.dtype, device=A.device)) / 2

    with torch.no_grad():
        model.values(model.embeddings[None], Objective.LOGIT, FullSequenceAttention(watch=watch))
    yield 0.5
    completion = model.completion
    explained = torch.tensor(completion.positions, device=mixed[0].device)
    rows = torch.eye(completion.num_tokens, dtype=mixed[0].dtype, device=mixed[0].device)[explained]  # [n, T]
    for index in sorted(mixed, reverse=True):
        rows = rows.to(mixed[index].device) @ mixed[index]
    for step, row in zip(completion.steps, rows, strict=True):
        yield StepScores(step, row[: completion.prefix_length(step)])
