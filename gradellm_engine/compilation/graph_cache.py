"""Graphs of decode steps: captured once per shape, replayed afterwards.

A decode step is a thousand small kernels, and launching them one by one takes longer than computing them on a GPU, and
a good part of it on a CPU; a CUDA graph (`gradellm_engine.compilation.cuda_graphs`) or a launch graph
(`gradellm_engine.compilation.launch_graphs`) launches them at once. A graph fixes every shape and address, so a
`BatchedPass` reads its inputs from static tensors, and batches are padded to a few numbers of sequences and columns.
The forward and the backward pass are captured apart, because a token is sampled between them.

Models whose control flow depends on data (some mixtures of experts, some rotary scalings) cannot be captured and run
eagerly. So do steps for which there is no memory to capture a graph; capturing is tried again after a while.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from gradellm_engine.compilation.executor import Batch
from gradellm_engine.compilation.tracer import NotTraceable
from gradellm_engine.passes.activation_cache import ActivationCache
from gradellm_engine.passes.base import SequenceChunk, Target
from gradellm_engine.passes.batched import BatchedPass, LinearOutputs, StepShape, is_replay
from gradellm_engine.passes.explained_pass import ExplainedPass
from gradellm_engine.passes.lm_head import LogitHead, signs, token_ids
from gradellm_engine.utils.memory import free_caches, is_out_of_memory

MAX_GRAPHS = 64  # the least recently used is dropped
STEPS_BEFORE_RETRY = 256  # run eagerly after there was no memory to capture a graph
_SIZES = sorted({size for power in range(24) for size in (2**power, 3 * 2**power // 2)})
_MIN_WIDTH = 128

logger = logging.getLogger(__name__)


class GraphCapturer(Protocol):
    """Captures the kernels that a function launches."""

    num_warm_ups: int
    """Runs before a capture."""

    def begin(self) -> None:
        """Begin the capture of a step, whose graphs use each other's results."""

    def warm_up(self, run: Callable[[], None]) -> None:
        """Run once, under the conditions of a capture."""

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run once; a function that replays exactly the same calls, on the same memory."""


Model = Callable[[BatchedPass], Tensor]  # runs a pass -> logits [B T, V]


class CapturedStep:
    """The graphs of one shape: forward and backward pass, or both in one where the targets are known before.

    Attributes:
        run: the pass whose static tensors the graphs read and write.
    """

    def __init__(
        self,
        capturer: GraphCapturer,
        run: BatchedPass,
        model: Model,
        head: nn.Module,
        activations: ActivationCache | None = None,
    ) -> None:
        """`run` holds the chunks of a step that is due: warm-up and capture execute it, several times."""
        self.run = run
        run.is_repeated = True
        self._head_module = head
        self._model = model if activations is None else _with_cache(model, activations)
        num_tokens, device = run.shape.num_rows * run.shape.num_tokens, run.ids_and_positions.device
        self._ids = torch.zeros((num_tokens, 2), dtype=torch.long, device=device)
        self._signs = torch.zeros((num_tokens, 2), device=device)
        stages: list[Callable[[], None]] = [self._forward]
        if not run.shape.is_new:
            stages = [self._forward_and_backward]
        elif run.shape.switches is not None:
            stages = [self._forward, self._backward]
        for _ in range(capturer.num_warm_ups):
            for stage in stages:
                capturer.warm_up(stage)
        capturer.begin()
        self._replay_first, *self._replay_backward = [capturer.capture(stage) for stage in stages]

    def execute(self, batch: Batch) -> ExplainedPass:
        """Replay the graphs for a batch of this shape; of a replay batch, `logits` include rows of padding."""
        self.run.fill(batch.chunks, batch.cache_rows)
        if batch.targets is not None:
            self._fill_targets(batch.chunks, batch.targets)
            self._replay_first()
            return ExplainedPass(self._logits, self.run, None)
        self._replay_first()
        return ExplainedPass(self._logits[: len(batch.chunks)], self.run, self.backward)

    def backward(self, ids: Tensor, signs: Tensor) -> None:
        """Differentiate the step that `execute` ran last; arguments as for `LogitHead.backward`."""
        if not self._replay_backward:
            raise RuntimeError("this step was captured without a backward pass")
        self._ids[: len(ids)].copy_(ids)
        self._signs.zero_()[: len(signs)].copy_(signs)
        self._replay_backward[0]()

    def _fill_targets(self, chunks: Sequence[SequenceChunk], targets: Sequence[Target]) -> None:
        padded: list[Target | None] = [None] * len(self._ids)
        for row, target in zip(self.run.own_rows(chunks), targets, strict=True):
            padded[row] = target
        self._ids.copy_(token_ids(padded))
        self._signs.copy_(signs(padded))

    def _forward(self) -> None:
        self.run.begin()
        if self.run.shape.switches is None:
            with torch.no_grad():
                self._logits = self._model(self.run)
            return
        self._head = LogitHead(self._head_module, None if self.run.shape.is_new else self._ids)
        self._logits = self._head.run_model(lambda: self._model(self.run))

    def _backward(self) -> None:
        self._head.backward(self._ids, self._signs.to(self._logits.dtype))
        self.run.end()

    def _forward_and_backward(self) -> None:
        self._forward()
        self._backward()


def _with_cache(model: Model, activations: ActivationCache) -> Model:
    """`model`, with the outputs of linear layers stored in the cache or loaded from it, as the pass's shape says."""

    def run_model(run: BatchedPass) -> Tensor:
        match run.shape.linear_outputs:
            case LinearOutputs.COMPUTED:
                return model(run)
            case LinearOutputs.STORED:
                with activations.storing(run.cache_rows):
                    return model(run)
            case LinearOutputs.LOADED:
                with activations.loading(run.cache_rows):
                    return model(run)

    return run_model


@dataclass(frozen=True)
class GraphLimits:
    """Which shapes are captured, and when.

    Attributes:
        pad: the shape that a step of some shape is captured in.
        max_graphs: the least recently used of more is dropped.
        capture_after_uses: how often a shape is due before it is captured.
    """

    pad: Callable[[StepShape], StepShape] = field(default_factory=lambda: pad_to_bucket)
    max_graphs: int = MAX_GRAPHS
    capture_after_uses: int = 1


class GraphCache:
    """Captured steps by shape, captured when a shape is first due; an `Executor`.

    Attributes:
        limits: which shapes are captured, and when.
        is_possible: whether this model's steps can be captured, as far as is known.
    """

    def __init__(
        self,
        capturer: GraphCapturer,
        new_pass: Callable[[StepShape], BatchedPass],
        model: Model,
        head: nn.Module,
        limits: GraphLimits | None = None,
        activations: ActivationCache | None = None,
    ) -> None:
        self._capturer, self._new_pass, self._model, self._head = capturer, new_pass, model, head
        self._activations = activations
        self.limits = limits or GraphLimits()
        self._steps: OrderedDict[StepShape, CapturedStep] = OrderedDict()
        self._uses: Counter[StepShape] = Counter()
        self.is_possible = True
        self._steps_until_retry = 0

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def shapes(self) -> list[StepShape]:
        """The shapes of the captured steps, least recently used first."""
        return list(self._steps)

    def disable(self, reason: str) -> None:
        """Drop all graphs, and capture none from now on."""
        logger.info("Graphs disabled: decode steps run without: %s", reason)
        self.is_possible = False
        self._steps.clear()

    def execute(self, batch: Batch) -> ExplainedPass | None:
        """See `Executor`; runs decode steps and replays of one kind of explanation."""
        captured = self._captured(batch)
        return None if captured is None else captured.execute(batch)

    def _captured(self, batch: Batch) -> CapturedStep | None:
        """The captured step of the batch's shape, captured now if need be; None where it cannot be."""
        shape = replace(self.limits.pad(StepShape.of(batch.chunks)), linear_outputs=batch.linear_outputs)
        if not (shape.is_new or is_replay(batch.chunks, shape.num_tokens)):
            return None
        self._uses[shape] += 1
        if self.is_possible and shape not in self._steps and self._uses[shape] >= self.limits.capture_after_uses:
            self._capture(shape, batch)
        if not self.is_possible or shape not in self._steps:
            return None
        self._steps.move_to_end(shape)
        return self._steps[shape]

    def _capture(self, shape: StepShape, batch: Batch) -> None:
        """Capture a step of this batch, if the model allows it and there is memory."""
        if self._steps_until_retry:
            self._steps_until_retry -= 1
            return
        try:
            run = self._new_pass(shape)
            run.fill(batch.chunks, batch.cache_rows)
            self._steps[shape] = CapturedStep(self._capturer, run, self._model, self._head, self._activations)
        except NotTraceable as reason:
            self.disable(str(reason))
            return
        except RuntimeError as error:  # torch has no narrower class for a failed capture
            if _ran_out_of_memory(error):
                logger.warning(
                    "Out of memory while capturing a graph of %s sequences; "
                    "shapes without a graph run eagerly for the next %s steps",
                    shape.num_rows,
                    STEPS_BEFORE_RETRY,
                )
                self._steps_until_retry = STEPS_BEFORE_RETRY
                error.with_traceback(None)  # its frames hold the pass's tensors
                free_caches()
                return
            logger.warning("Graphs disabled: decode steps run eagerly: %s", str(error).split("\n")[0])
            self.is_possible = False
        if len(self._steps) > self.limits.max_graphs:
            del self._uses[self._steps.popitem(last=False)[0]]


def pad_width(shape: StepShape) -> StepShape:
    """The shape that a launch graph is captured in: only columns are padded, as rows cost what they cost."""
    return replace(shape, width=_SIZES[bisect_left(_SIZES, max(_MIN_WIDTH, shape.width))])


def _ran_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, also where the interrupted capture then raised another error."""
    return is_out_of_memory(error) or (error.__context__ is not None and is_out_of_memory(error.__context__))


def pad_to_bucket(shape: StepShape) -> StepShape:
    """The shape that a step is captured in.

    Tokens are padded to a power of two; rows and columns to a power of two or to one and a half times one.
    """
    return replace(
        shape,
        num_rows=_SIZES[bisect_left(_SIZES, shape.num_rows)],
        num_tokens=1 << (shape.num_tokens - 1).bit_length(),
        width=_SIZES[bisect_left(_SIZES, max(_MIN_WIDTH, shape.width))],
    )
