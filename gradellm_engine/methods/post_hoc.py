"""Methods that look at a completion after the fact, over whole sequences: what they are given and what they have.

A method is a generator. It yields `StepScores`s, a step each, and fractions of its work that are done; between two of
them lies at most a pass or two of bounded size, so that others can run and whoever gave up is noticed.

Shapes: m prompt tokens, n steps, T = m + n - 1 tokens that are read, V vocabulary, h the embeddings' width. Step t
predicts completion token t from the first m + t tokens, at position m + t - 1.
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

PASS_TOKENS = 2048  # of all sequences that a pass reads, or that gradients go back through, at most
CPU_BATCH_TOKENS = 256  # that gradients go back through: a processor gains nothing from more, and loses some


class Objective(StrEnum):
    """What of the target is differentiated, or watched while something changes."""

    LOGIT = "logit"
    LOG_PROB = "log_prob"
    PROB = "prob"


@dataclass(frozen=True)
class ObjectiveSwitches(Switches):
    """Of a method that follows the target's own number.

    Attributes:
        objective: the logit, the logarithm of the probability, or the probability.
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
        targets: what is explained at each step. [n]
        slot: what holds the keys and values of all tokens but the last, where something does.
    """

    ids: Sequence[int]
    num_prompt_tokens: int
    targets: Sequence[Target]
    slot: KVSlot | None = None

    @property
    def num_steps(self) -> int:
        """How many there are, n."""
        return len(self.targets)

    @property
    def num_tokens(self) -> int:
        """T, all that is read: the last token of the completion is only predicted."""
        return self.num_prompt_tokens + self.num_steps - 1

    def prefix(self, step: int) -> int:
        """Tokens that a step is predicted from."""
        return self.num_prompt_tokens + step


@dataclass(frozen=True)
class StepScores:
    """What explains a step.

    Attributes:
        step: which.
        scores: one a token of its prefix. [m + t]
        error: the method's own measure of how far off they are; None where it has none.
    """

    step: int
    scores: Tensor
    error: float | None = None


ScoreStream = Iterator[StepScores | float]


class CompletionModel:
    """The model as a function of embeddings, for one completion.

    Attributes:
        decoder: runs it.
        given: the completion.
        family: the model's.
        memory: bytes that passes may take beside the model.
    """

    def __init__(
        self,
        runner: ModelRunner,
        family: Family,
        given: CompletionContext,
        memory: int,
        bytes_of: Callable[[int, int, bool], int],
    ) -> None:
        """`bytes_of` says what a pass over a sequence of T tokens with n steps takes, with a graph or without."""
        self.runner, self.family, self.given, self.memory = runner, family, given, memory
        self._bytes_of = bytes_of

    def of_first(self, num_steps: int) -> CompletionModel:
        """The same, of a completion that ends after so many steps."""
        given = self.given
        ids = given.ids[: given.num_prompt_tokens + num_steps]
        first = replace(given, ids=ids, targets=given.targets[:num_steps])
        return CompletionModel(self.runner, self.family, first, self.memory, self._bytes_of)

    @property
    def device(self) -> torch.device:
        """Where embeddings go in."""
        device: torch.device = self.runner.device
        return device

    @cached_property
    def embeddings(self) -> Tensor:
        """Those of the tokens as they are. [T, h]"""
        return self.runner.embed(self.given.ids[: self.given.num_tokens])

    def sequences_a_pass(self, *, graph: bool = False) -> int:
        """How many sequences go into one pass: as many as fit the memory, within the size of a pass; 1 at least."""
        T = self.given.num_tokens
        fitting = self.memory // max(1, self._bytes_of(T, self.given.num_steps, graph))
        return max(1, min(fitting, PASS_TOKENS // T))

    def values(self, embeddings: Tensor, objective: Objective, run: SequenceAttention | None = None) -> Tensor:
        """The objective at each step, of sequences of embeddings. [B, T, h] -> [B, n]"""
        given = self.given
        positions = torch.arange(given.num_tokens, device=self.device)
        logits = self.runner.full_sequence_logits(
            embeddings, positions, positions[given.num_prompt_tokens - 1 :], run or FullSequenceAttention()
        )
        compute = torch.promote_types(logits.dtype, torch.float32)
        return objective_values(logits.to(compute), given.targets, objective)

    def gradients(self, values: Tensor, inputs: Tensor) -> Iterator[tuple[range, Tensor]]:
        """Of each step's value by `inputs`, some steps at a time. [n], [..] -> [steps, ..]

        One graph serves them all; its last use frees it.
        """
        n, T = len(values), self.given.num_tokens
        tokens = PASS_TOKENS if values.is_cuda else min(PASS_TOKENS, CPU_BATCH_TOKENS)
        at_once = max(1, min(n, tokens // (T * inputs.shape[0])))
        for first in range(0, n, at_once):
            steps = range(first, min(n, first + at_once))
            chosen = torch.zeros((len(steps), n), dtype=values.dtype, device=values.device)
            chosen[torch.arange(len(steps)), torch.tensor(list(steps))] = 1
            yield steps, _backward(values, inputs, chosen, is_last=steps.stop == n)


def _backward(values: Tensor, inputs: Tensor, chosen: Tensor, *, is_last: bool) -> Tensor:
    """Gradients of some of the values, in one backward pass. [n], [..], [steps, n] -> [steps, ..]"""

    def one(weights: Tensor, *, keep: bool = True) -> Tensor:
        (gradient,) = torch.autograd.grad(values, inputs, weights, retain_graph=keep)
        return gradient

    if len(chosen) == 1:
        return one(chosen[0], keep=not is_last)[None]
    try:
        together: Tensor = torch.func.vmap(one)(chosen)
    except RuntimeError as error:  # an operation of the model whose backward pass takes no batches
        if is_out_of_memory(error):
            raise
        return torch.stack([one(weights) for weights in chosen])
    return together


def objective_values(logits: Tensor, targets: Sequence[Target], objective: Objective) -> Tensor:
    """The objective of each step's target, less the contrast's. [B, n, V] -> [B, n]"""
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
    """What stands in for the prompt's embeddings where they are taken away: zero, or those of as many tokens. [m, h]"""
    if baseline_ids:
        return model.runner.embed(baseline_ids)
    return torch.zeros_like(model.embeddings[: model.given.num_prompt_tokens])


def check_baseline(baseline_ids: Sequence[int], num_prompt_tokens: int) -> None:
    """Refuse a baseline that has not one token for each of the prompt's."""
    if baseline_ids and len(baseline_ids) != num_prompt_tokens:
        raise InvalidRequestError(
            "attribution.baseline_ids",
            f"are {len(baseline_ids)} tokens; the prompt has {num_prompt_tokens}, each of which needs one",
        )


def prefix_scores(scores: Tensor, given: CompletionContext, step: int) -> Tensor:
    """Scores of the prompt alone, 0 for the tokens generated before the step. [m] -> [m + t]"""
    return torch.nn.functional.pad(scores, (0, given.prefix(step) - len(scores)))
