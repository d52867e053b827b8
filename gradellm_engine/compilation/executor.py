"""How a batch of decode steps, or of tokens that are replayed to be explained, runs through the model.

There are three executors: `EagerExecutor` here calls the model's modules one by one, `GraphCache` replays captured
graphs, and `CpuTraceCache` runs recorded operations without the modules' Python. `ModelRunner` chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from gradellm_engine.passes.base import AttentionPass, SequenceChunk, Target
from gradellm_engine.passes.batched import LinearOutputs
from gradellm_engine.passes.explained_pass import ExplainedPass
from gradellm_engine.passes.lm_head import LogitHead


@dataclass
class Batch:
    """Sequence chunks that go through the model in one pass, and what is computed of them.

    Attributes:
        chunks: the sequences' tokens: those that are prefilled, then those of the decode step or replay.
        make_pass: makes the pass that carries out their attention.
        is_batched: whether the attention of all sequences but the prefilled ones is computed at once (`BatchedPass`).
        num_prefill: chunks that are prefilled.
        targets: the targets of all tokens, where they are known before the pass: a teacher-forced replay.
        head: the language-model head of an explained pass; None for logits alone.
        is_cached: whether the outputs of all linear layers are cached for all tokens (`ActivationCache`).
        cache_rows: the tokens' rows in that cache, of a batched pass that loads or stores outputs there.
    """

    chunks: Sequence[SequenceChunk]
    make_pass: Callable[[Batch], AttentionPass]
    is_batched: bool
    num_prefill: int = 0
    targets: Sequence[Target] | None = None
    head: LogitHead | None = None
    is_cached: bool = False
    cache_rows: Sequence[int] | None = None

    @property
    def linear_outputs(self) -> LinearOutputs:
        """What a batched pass does with the outputs of linear layers."""
        if self.cache_rows is None:
            return LinearOutputs.COMPUTED
        return LinearOutputs.LOADED if self.is_cached else LinearOutputs.STORED

    @cached_property
    def run(self) -> AttentionPass:
        """The batch's pass. A recording executes one of its own, from `build_pass`."""
        return self.build_pass()

    def build_pass(self) -> AttentionPass:
        """A new pass over the chunks."""
        return self.make_pass(self)


class Executor(Protocol):
    """Runs batches."""

    def execute(self, batch: Batch) -> ExplainedPass | None:
        """The forward pass of a batch; None where this executor cannot run it, or not yet."""


class EagerExecutor:
    """Calls the model's modules, under autograd where the batch is explained."""

    def __init__(self, model: Callable[[AttentionPass], Tensor]) -> None:
        """`model` runs a pass: its logits. [T, V]"""
        self._model = model

    def execute(self, batch: Batch) -> ExplainedPass:
        """See `Executor`; runs every batch."""
        run, head = batch.run, batch.head
        if head is None:
            with torch.no_grad():
                return ExplainedPass(self._model(run), run, None)
        return ExplainedPass(head.run_model(lambda: self._model(run)), run, head.backward)
