"""A model of how long a pass takes, fitted to passes that were measured.

A pass of one kind takes

    base(size) + slope * work

where size is its rows (streams of a step, tokens of a replay or of a piece of a prompt), base runs straight between
the sizes that were measured, and work is what attention reads: the tokens before each row, all rows together. Weighted
so that relative errors count, and slope is never below 0. Beyond the largest size that was measured base goes on as
before.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from gradellm_bench.capacity.measurements import Kind, Measurements, PassMeasurement
from gradellm_engine.compilation.cuda_graphs import pad_to_bucket
from gradellm_engine.passes.batched import StepShape


@dataclass(frozen=True)
class PassModel:
    """Of one kind.

    Attributes:
        sizes: where base was fitted, ascending.
        bases: seconds there.
        slope: seconds a token that attention reads.
        rounds: whether sizes are rounded up to those that steps are recorded in.
        error: largest relative difference from what was measured.
    """

    sizes: tuple[int, ...]
    bases: tuple[float, ...]
    slope: float
    rounds: bool
    error: float

    def seconds(self, size: int, work: float) -> float:
        """How long a pass takes."""
        if self.rounds:
            size = recorded_rows(size)
        return self._base(size) + self.slope * work

    def _base(self, size: float) -> float:
        sizes, bases = self.sizes, self.bases
        if len(sizes) == 1:
            return bases[0]
        right = min(max(1, bisect_left(sizes, size)), len(sizes) - 1)
        share = (size - sizes[right - 1]) / (sizes[right] - sizes[right - 1])
        return max(min(bases) / 2, bases[right - 1] + share * (bases[right] - bases[right - 1]))

    @classmethod
    def fit(cls, passes: Sequence[PassMeasurement], *, rounds: bool) -> PassModel:
        """Least squares of relative errors.

        Raises:
            ValueError: where nothing was measured.
        """
        if not passes:
            raise ValueError("no passes of this kind were measured")
        sizes = sorted({_size(its) for its in passes})
        seconds = np.array([its.median for its in passes])
        design = np.array([[float(size == _size(its)) for size in sizes] + [_work(its)] for its in passes])
        found = np.linalg.lstsq(design / seconds[:, None], np.ones(len(passes)), rcond=None)[0]
        told_apart = len({(_size(its), _work(its)) for its in passes}) > len(sizes)
        if (
            found[-1] < 0 or not told_apart or not np.isfinite(found).all()
        ):  # noise: a pass does not become faster by reading more
            found = np.append(
                np.linalg.lstsq(design[:, :-1] / seconds[:, None], np.ones(len(passes)), rcond=None)[0], 0
            )
        error = float(np.abs(design @ found / seconds - 1).max())
        return cls(tuple(sizes), tuple(map(float, found[:-1])), float(found[-1]), rounds, error)


@dataclass(frozen=True)
class Costs:
    """Of a machine's passes.

    Attributes:
        models: by kind.
        processor: cpu or cuda.
        recording_seconds: that a step of a new shape takes longer, by kind; empty where steps are not recorded.
        kv_bytes_per_token: bytes of a token's keys and values.
        weight_bytes: that a step reads.
        bandwidth: bytes a second that memory is read at.
    """

    models: dict[Kind, PassModel]
    processor: Literal["cpu", "cuda"]
    recording_seconds: dict[Kind, float]
    kv_bytes_per_token: int
    weight_bytes: int
    bandwidth: float

    @classmethod
    def fit(cls, measured: Measurements) -> Costs:
        """Of what was measured."""
        is_recorded = measured.processor == "cuda"
        kinds: tuple[Kind, ...] = ("step", "explained_step", "scores", "replay", "read")
        models = {
            kind: PassModel.fit(
                [its for its in measured.passes if its.kind == kind], rounds=is_recorded and kind != "read"
            )
            for kind in kinds
        }
        longer: dict[Kind, list[float]] = {}
        for its in measured.passes:
            if is_recorded and its.first_seconds is not None and its.kind != "scores":
                longer.setdefault(its.kind, []).append(its.first_seconds - its.median)
        return cls(
            models,
            measured.processor,
            {kind: float(np.median(seconds)) for kind, seconds in longer.items()},
            measured.kv_bytes_per_token,
            measured.weight_bytes,
            measured.bandwidth,
        )

    def step(self, streams: int, context: int, *, explained: bool) -> float:
        """A token of each of so many streams, which hold `context` tokens together; to their tokens."""
        return self.models["explained_step" if explained else "step"].seconds(streams, context)

    def scores(self, streams: int, context: int) -> float:
        """The scores of such a step."""
        return self.models["scores"].seconds(streams, context)

    def replay(self, tokens: int, work: int) -> float:
        """Chunks of `tokens` together, before each of which lie tokens that are `work` together."""
        return self.models["replay"].seconds(tokens, work)

    def read(self, tokens: int, work: int) -> float:
        """Pieces of prompts of `tokens` together."""
        return self.models["read"].seconds(tokens, work)


@cache
def recorded_rows(size: int) -> int:
    """How many rows a step of so many is recorded with."""
    return pad_to_bucket(StepShape(size, 1, 1, is_new=True, switches=None, has_domains=False)).num_rows


def read_work(tokens: int, context: int) -> int:
    """What attention reads for a piece of a prompt behind `context` tokens."""
    return tokens * context + tokens * (tokens - 1) // 2


def _size(its: PassMeasurement) -> int:
    return its.streams * its.tokens


def _work(its: PassMeasurement) -> float:
    if its.kind == "read":
        return float(read_work(its.tokens, its.context))
    return float(its.streams * its.tokens * its.context)
