"""Decode steps that are recorded once and replayed.

A step of a large model on a GPU is a thousand small calls, and making them takes longer than carrying them out. A CUDA
graph carries out a recorded series at one call. It fixes every shape and address: a `BatchedPass` reads what changes
from tensors of its own, and steps are rounded up to some numbers of sequences and columns. Forward and backward pass
are recorded apart, for a token is chosen between them.

What cannot be recorded (a model that looks at its numbers to decide what to do next, as some mixtures of experts and
some rotary scalings do) is run step by step, as everything is on a CPU. So is what there is no memory to record, which
takes more than to run: for a while, until that is tried again.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from gradellm_engine.passes.base import SequenceChunk, Target
from gradellm_engine.passes.batched import BatchedPass, StepShape, is_replay
from gradellm_engine.passes.lm_head import LogitHead, signs, token_ids
from gradellm_engine.utils.memory import free_caches, is_out_of_memory

MOST_RECORDINGS = 64  # the one not used for longest is given up
STEPS_BEFORE_NEXT = 256  # that run call by call once there was no memory to record one
_WARM_UPS = 2  # before recording: libraries choose kernels and take work space at their first calls
_SIZES = sorted({size for power in range(24) for size in (2**power, 3 * 2**power // 2)})
_MIN_WIDTH = 128

logger = logging.getLogger(__name__)


class GraphCapturer(Protocol):
    """What records."""

    def warm_up(self, run: Callable[[], None]) -> None:
        """Run once, as it will be while it is recorded."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run once; what repeats exactly the same calls, on the same memory."""


class CudaRecorder:
    """Records CUDA graphs. They share their memory: one runs at a time, and its results are taken before the next."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = torch.cuda.graph_pool_handle()

    def warm_up(self, run: Callable[[], None]) -> None:
        """See `GraphCapturer`."""
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream(self._device).wait_stream(stream)

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """See `GraphCapturer`."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device), torch.cuda.graph(graph, pool=self._memory):
            run()
        return graph.replay


Run = Callable[[BatchedPass], Tensor]  # -> logits [B, V]


class CapturedStep:
    """A step of one shape: its forward and its backward pass, or both as one where the targets are known before.

    Attributes:
        run: the pass, on whose tensors it was recorded.
    """

    def __init__(self, recorder: GraphCapturer, run: BatchedPass, model: Run, head: nn.Module) -> None:
        """`run` is filled with a step that is due: recording carries it out, again and again."""
        self.run = run
        self._model, self._head_module = model, head
        num_tokens, device = run.shape.num_rows * run.shape.num_tokens, run.ids_and_positions.device
        self._ids = torch.zeros((num_tokens, 2), dtype=torch.long, device=device)
        self._signs = torch.zeros((num_tokens, 2), device=device)
        stages: list[Callable[[], None]] = [self._read]
        if not run.shape.is_new:
            stages = [self._read_and_explain]
        elif run.shape.switches is not None:
            stages = [self._read, self._explain]
        for _ in range(_WARM_UPS):
            for stage in stages:
                recorder.warm_up(stage)
        self._replay_first, *self._replay_explain = [recorder.record(stage) for stage in stages]

    def read(self, parts: Sequence[SequenceChunk]) -> Tensor:
        """Take a step; the logits after each part. [B, V]"""
        self.run.fill(parts)
        self._replay_first()
        return self._logits[: len(parts)]

    def explain(self, ids: Tensor, signs: Tensor) -> None:
        """Differentiate what was read; arguments as for `LogitHead.backward`."""
        if not self._replay_explain:
            raise RuntimeError("this step was recorded without a backward pass")
        self._ids[: len(ids)].copy_(ids)
        self._signs.zero_()[: len(signs)].copy_(signs)
        self._replay_explain[0]()

    def replay(self, parts: Sequence[SequenceChunk], targets: Sequence[Target]) -> list[Tensor]:
        """Explain tokens once more; arguments and result as for `Decoder.replay`, on the device."""
        self.run.fill(parts)
        rows = self.run.own_rows(parts)
        known: list[Target | None] = [None] * len(self._ids)
        for row, target in zip(rows, targets, strict=True):
            known[row] = target
        self._ids.copy_(token_ids(known))
        self._signs.copy_(signs(known))
        self._replay_first()
        return self.run.heat_maps()

    def _read(self) -> None:
        self.run.begin()
        if self.run.shape.switches is None:
            with torch.no_grad():
                self._logits = self._model(self.run)
            return
        self._head = LogitHead(self._head_module, None if self.run.shape.is_new else self._ids)
        self._logits = self._head.run_model(lambda: self._model(self.run))

    def _read_and_explain(self) -> None:
        self._read()
        self._explain()

    def _explain(self) -> None:
        self._head.backward(self._ids, self._signs.to(self._logits.dtype))
        self.run.end()


class CudaGraphCache:
    """Recorded steps by shape, made when they are first due.

    Attributes:
        is_possible: whether this model's steps can be recorded, as far as is known.
    """

    def __init__(
        self, recorder: GraphCapturer, new_pass: Callable[[StepShape], BatchedPass], model: Run, head: nn.Module
    ) -> None:
        self._recorder, self._new_pass, self._model, self._head = recorder, new_pass, model, head
        self._steps: OrderedDict[StepShape, CapturedStep] = OrderedDict()
        self.is_possible = True
        self._num_without = 0  # steps to come that are not recorded, since there was no memory

    def __len__(self) -> int:
        return len(self._steps)

    def step(self, parts: Sequence[SequenceChunk]) -> CapturedStep | None:
        """What takes a step of these parts, or reads them once more; None where none can be recorded."""
        shape = pad_to_bucket(StepShape.of(parts))
        if not (shape.is_new or is_replay(parts, shape.num_tokens)):
            return None
        if self.is_possible and shape not in self._steps:
            self._record(shape, parts)
        if not self.is_possible or shape not in self._steps:
            return None
        self._steps.move_to_end(shape)
        return self._steps[shape]

    def _record(self, shape: StepShape, parts: Sequence[SequenceChunk]) -> None:
        """Record a step of these parts, if it can be and there is memory."""
        if self._num_without:
            self._num_without -= 1
            return
        try:
            run = self._new_pass(shape)
            run.fill(parts)
            self._steps[shape] = CapturedStep(self._recorder, run, self._model, self._head)
        except RuntimeError as error:  # torch has no narrower one
            if _ran_out_of_memory(error):
                logger.warning("no memory to record a decode step; some will run call by call")
                self._num_without = STEPS_BEFORE_NEXT
                error.with_traceback(None)  # its frames hold the pass's tensors
                free_caches()
                return
            logger.warning("decode steps cannot be recorded and run call by call: %s", str(error).split("\n")[0])
            self.is_possible = False
        if len(self._steps) > MOST_RECORDINGS:
            self._steps.popitem(last=False)


def _ran_out_of_memory(error: BaseException) -> bool:
    """Whether it did, before the recording was broken off, which raises an error of its own."""
    return is_out_of_memory(error) or (error.__context__ is not None and is_out_of_memory(error.__context__))


def pad_to_bucket(shape: StepShape) -> StepShape:
    """The shape that it is recorded in: powers of two, and of rows and columns what lies halfway between them."""
    return replace(
        shape,
        num_rows=_SIZES[bisect_left(_SIZES, shape.num_rows)],
        num_tokens=1 << (shape.num_tokens - 1).bit_length(),
        width=_SIZES[bisect_left(_SIZES, max(_MIN_WIDTH, shape.width))],
    )
