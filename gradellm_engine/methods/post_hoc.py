"""Post-hoc methods: the completion to explain, the model over whole sequences, and the scores that methods yield.

A method is a generator. It yields a `StepScores` for each step, and the share of its work that is done. Between two
results it runs at most a pass or two of bounded size, so that the scheduler can run other requests, or cancel this one.

Shapes: m prompt tokens, n explained steps, V vocabulary, h hidden size, B sequences of a pass. Step t predicts
completion token t from the first m + t tokens, at position m + t - 1. T tokens are read, as many as the last explained
step needs: m + n - 1 where all steps of a completion are explained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

import torch
from torch import Tensor

from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.kv_cache.pool import KVSlot
from gradellm_engine.model.families import Family
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.params import Switches, check_choice
from gradellm_engine.passes.base import Target
from gradellm_engine.passes.full_sequence import FullSequenceAttention, SequenceAttention
from gradellm_engine.passes.lm_head import signs, token_ids
from gradellm_engine.utils.memory import is_out_of_memory

PASS_TOKENS = 2048  # of all sequences of a forward pass, and of the gradients that run as one backward pass
CPU_BATCH_TOKENS = 256  # of the gradients of one backward pass on a CPU, which gets slower with more


class Objective(StrEnum):
    """The function of the target's logit that is differentiated, or compared before and after a perturbation."""

    LOGIT = "logit"
    LOG_PROB = "log_prob"
    PROB = "prob"


@dataclass(frozen=True)
class ObjectiveSwitches(Switches):
    """Switches of a method with an objective.

    Attributes:
        objective: logit, log probability or probability of the target.
    """

    objective: Objective = Objective.LOGIT

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("attribution.objective", self.objective, Objective)


@dataclass(frozen=True)
class CompletionContext:
    """A completion to explain.

    Attributes:
        ids: prompt and completion. [m + n]
        num_prompt_tokens: m.
        targets: what is explained at each explained step. [n]
        slot: KV slot that holds all tokens but the last; None where no slot does.
        selected: the explained steps, ascending; None for the first n. [n]
    """

    ids: Sequence[int]
    num_prompt_tokens: int
    targets: Sequence[Target]
    slot: KVSlot | None = None
    selected: Sequence[int] | None = None

    @property
    def steps(self) -> Sequence[int]:
        """The explained steps: indexes of tokens in the completion, ascending. [n]"""
        return range(len(self.targets)) if self.selected is None else self.selected

    @property
    def num_steps(self) -> int:
        """The number of explained steps, n."""
        return len(self.targets)

    @property
    def num_tokens(self) -> int:
        """T, the tokens that are read: the last explained token is only predicted."""
        return self.prefix_length(self.steps[-1])

    @property
    def positions(self) -> list[int]:
        """The positions that predict the explained tokens. [n]"""
        return [self.prefix_length(step) - 1 for step in self.steps]

    def restricted(self, steps: Sequence[int]) -> CompletionContext:
        """The same completion, of which only `steps`, a part of the explained ones, are explained."""
        targets = dict(zip(self.steps, self.targets, strict=True))
        return replace(self, targets=[targets[step] for step in steps], selected=steps)

    def prefix_length(self, step: int) -> int:
        """Number of tokens that a step is predicted from, m + t."""
        return self.num_prompt_tokens + step


@dataclass(frozen=True)
class StepScores:
    """The scores of one step.

    Attributes:
        step: index of the explained token in the completion, t.
        scores: one a token of the prefix. [m + t]
        error: the method's estimate of the scores' error; None where it has none.
    """

    step: int
    scores: Tensor
    error: float | None = None


ScoreStream = Iterator[StepScores | float]
"""Scores of steps, and the share of the method's work that is done."""


class CompletionModel:
    """The model as a function of embeddings, for one completion.

    Attributes:
        runner: runs the model.
        family: the model's family.
        completion: the completion.
        memory: bytes that passes may use, without the model.
    """

    def __init__(
        self,
        runner: ModelRunner,
        family: Family,
        completion: CompletionContext,
        memory: int,
        bytes_of: Callable[[int, int, bool], int],
    ) -> None:
        """`bytes_of` estimates the bytes of a pass over T tokens with n steps, with or without an autograd graph."""
        self.runner, self.family, self.completion, self.memory = runner, family, completion, memory
        self._bytes_of = bytes_of

    def restricted(self, steps: Sequence[int]) -> CompletionModel:
        """The model for some of the explained steps; it reads no token after the last of them."""
        completion = self.completion.restricted(steps)
        return CompletionModel(self.runner, self.family, completion, self.memory, self._bytes_of)

    @property
    def device(self) -> torch.device:
        """Device of the embeddings."""
        device: torch.device = self.runner.device
        return device

    @cached_property
    def embeddings(self) -> Tensor:
        """Embeddings of the unperturbed tokens. [T, h]"""
        return self.runner.embed(self.completion.ids[: self.completion.num_tokens])

    def sequences_per_pass(self, *, graph: bool = False) -> int:
        """Sequences of one pass: as many as fit the memory and PASS_TOKENS, at least 1."""
        T = self.completion.num_tokens
        fitting = self.memory // max(1, self._bytes_of(T, self.completion.num_steps, graph))
        return max(1, min(fitting, PASS_TOKENS // T))

    def values(self, embeddings: Tensor, objective: Objective, attention: SequenceAttention | None = None) -> Tensor:
        """The objective of each step's target, for sequences of embeddings. [B, T, h] -> [B, n]"""
        completion = self.completion
        positions = torch.arange(completion.num_tokens, device=self.device)
        explained = torch.tensor(completion.positions, device=self.device)
        logits = self.runner.full_sequence_logits(
            embeddings, positions, explained, attention or FullSequenceAttention()
        )
        compute = torch.promote_types(logits.dtype, torch.float32)
        return objective_values(logits.to(compute), completion.targets, objective)

    def gradients(self, values: Tensor, inputs: Tensor) -> Iterator[tuple[range, Tensor]]:
        """Gradients of each step's value by `inputs`, some at a time, by their places in `values`. [n], [..] -> [r, ..]

        All steps share one autograd graph, which the last backward pass frees.
        """
        n, T = len(values), self.completion.num_tokens
        tokens = PASS_TOKENS if values.is_cuda else min(PASS_TOKENS, CPU_BATCH_TOKENS)
        at_once = max(1, min(n, tokens // (T * inputs.shape[0])))
        for first in range(0, n, at_once):
            rows = range(first, min(n, first + at_once))
            chosen = torch.zeros((len(rows), n), dtype=values.dtype, device=values.device)
            chosen[torch.arange(len(rows)), torch.tensor(list(rows))] = 1
            yield rows, _backward(values, inputs, chosen, is_last=rows.stop == n)


def _backward(values: Tensor, inputs: Tensor, chosen: Tensor, *, is_last: bool) -> Tensor:
    """Gradients of some of the values, in one backward pass. [n], [..], [r, n] -> [r, ..]"""

    def backward(weights: Tensor, *, retain_graph: bool = True) -> Tensor:
        (gradient,) = torch.autograd.grad(values, inputs, weights, retain_graph=retain_graph)
        return gradient

    if len(chosen) == 1:
        return backward(chosen[0], retain_graph=not is_last)[None]
    try:
        batched: Tensor = torch.func.vmap(backward)(chosen)
    except RuntimeError as error:  # an operation of the model has no batching rule
        if is_out_of_memory(error):
            raise
        return torch.stack([backward(weights) for weights in chosen])
    return batched


def objective_values(logits: Tensor, targets: Sequence[Target], objective: Objective) -> Tensor:
    """The objective of each step's target, minus that of its contrast. [B, n, V] -> [B, n]"""
    match objective:
        case Objective.LOGIT:
            scores = logits
        case Objective.LOG_PROB:
            scores = logits.log_softmax(-1)
        case Objective.PROB:
            scores = logits.softmax(-1)
    ids = token_ids(targets).to(logits.device)
    both = scores.gather(-1, ids.expand(*scores.shape[:-1], 2))  # the target's and the contrast's
    if all(target.contrast_id is None for target in targets):
        return both[..., 0]
    return (both * signs(targets).to(both)).sum(-1)


def baseline_embeddings(model: CompletionModel, baseline_ids: Sequence[int]) -> Tensor:
    """The baseline of the prompt's embeddings: zeros, or the embeddings of `baseline_ids`. [m, h]"""
    if baseline_ids:
        return model.runner.embed(baseline_ids)
    return torch.zeros_like(model.embeddings[: model.completion.num_prompt_tokens])


def check_baseline(baseline_ids: Sequence[int], num_prompt_tokens: int) -> None:
    """Refuse a baseline without one token for each token of the prompt."""
    if baseline_ids and len(baseline_ids) != num_prompt_tokens:
        raise InvalidRequestError(
            "attribution.baseline_ids",
            f"are {len(baseline_ids)} tokens; give one for each of the prompt's {num_prompt_tokens} tokens",
        )


def prefix_scores(scores: Tensor, completion: CompletionContext, step: int) -> Tensor:
    """Scores of the prompt, padded with 0 for the tokens generated before the step. [m] -> [m + t]"""
    return torch.nn.functional.pad(scores, (0, completion.prefix_length(step) - len(scores)))
