"""A cost model of the scheduler's passes, fitted to measurements.

The seconds of a pass of one kind are

    base(size) + slope * work

where size is its rows (streams of a decode step, tokens of a replay or of a prefill chunk), base is piecewise linear
between the measured sizes and extrapolated beyond the largest, and work is the number of keys that attention reads: the
tokens before each row, summed over rows. The fit minimises relative errors; slope is not negative.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from gradellm_bench.capacity.measurements import Kind, Measurements, PassMeasurement
from gradellm_engine.compilation.graph_cache import pad_to_bucket
from gradellm_engine.passes.batched import StepShape


@dataclass(frozen=True)
class PassModel:
    """The cost model of one kind of pass.

    Attributes:
        sizes: measured sizes, ascending.
        bases: base seconds at these sizes.
        slope: seconds per key that attention reads.
        rounds: whether sizes are padded to the buckets of CUDA graphs.
        error: largest relative error over the measurements.
    """

    sizes: tuple[int, ...]
    bases: tuple[float, ...]
    slope: float
    rounds: bool
    error: float

    def seconds(self, size: int, work: float) -> float:
        """Seconds of a pass."""
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
        """Fit by least squares of relative errors.

        Raises:
            ValueError: without measurements.
        """
        if not passes:
            raise ValueError("no passes of this kind were measured")
        sizes = sorted({_size(each) for each in passes})
        seconds = np.array([each.median for each in passes])
        design = np.array([[float(size == _size(each)) for size in sizes] + [_work(each)] for each in passes])
        solution = np.linalg.lstsq(design / seconds[:, None], np.ones(len(passes)), rcond=None)[0]
        is_determined = len({(_size(each), _work(each)) for each in passes}) > len(sizes)
        if (
            solution[-1] < 0 or not is_determined or not np.isfinite(solution).all()
        ):  # noise: a pass that reads more keys is not faster
            solution = np.append(
                np.linalg.lstsq(design[:, :-1] / seconds[:, None], np.ones(len(passes)), rcond=None)[0], 0
            )
        error = float(np.abs(design @ solution / seconds - 1).max())
        return cls(tuple(sizes), tuple(map(float, solution[:-1])), float(solution[-1]), rounds, error)


@dataclass(frozen=True)
class Costs:
    """The cost model of a machine's passes.

    Attributes:
        models: by kind of pass.
        processor: cpu or cuda.
        recording_seconds: seconds to capture the CUDA graph of a new shape, by kind; empty without CUDA graphs.
        kv_bytes_per_token: bytes of a token's keys and values.
        weight_bytes: bytes of weights that a step reads.
        bandwidth: memory bandwidth in bytes per second.
    """

    models: dict[Kind, PassModel]
    processor: Literal["cpu", "cuda"]
    recording_seconds: dict[Kind, float]
    kv_bytes_per_token: int
    weight_bytes: int
    bandwidth: float

    @classmethod
    def fit(cls, measured: Measurements) -> Costs:
        """Fit to measurements."""
        is_recorded = measured.processor == "cuda"
        kinds: tuple[Kind, ...] = ("step", "explained_step", "scores", "replay", "read")
        models = {
            kind: PassModel.fit(
                [each for each in measured.passes if each.kind == kind], rounds=is_recorded and kind != "read"
            )
            for kind in kinds
        }
        captures: dict[Kind, list[float]] = {}
        for each in measured.passes:
            if is_recorded and each.first_seconds is not None and each.kind != "scores":
                captures.setdefault(each.kind, []).append(each.first_seconds - each.median)
        return cls(
            models,
            measured.processor,
            {kind: float(np.median(seconds)) for kind, seconds in captures.items()},
            measured.kv_bytes_per_token,
            measured.weight_bytes,
            measured.bandwidth,
        )

    def step(self, streams: int, context: int, *, explained: bool) -> float:
        """Seconds of a decode step of `streams`, which hold `context` tokens together, until its tokens are known."""
        return self.models["explained_step" if explained else "step"].seconds(streams, context)

    def scores(self, streams: int, context: int) -> float:
        """Seconds of the attribution of such a step."""
        return self.models["scores"].seconds(streams, context)

    def replay(self, tokens: int, work: int) -> float:
        """Seconds of a replay of chunks with `tokens` tokens and `work` keys together."""
        return self.models["replay"].seconds(tokens, work)

    def read(self, tokens: int, work: int) -> float:
        """Seconds of prefill chunks of `tokens` together."""
        return self.models["read"].seconds(tokens, work)


@cache
def recorded_rows(size: int) -> int:
    """The rows of the CUDA graph bucket for a step of `size` rows."""
    return pad_to_bucket(StepShape(size, 1, 1, is_new=True, switches=None, has_domains=False)).num_rows


def read_work(tokens: int, context: int) -> int:
    """Keys that attention reads for a prefill chunk of `tokens` after `context` tokens."""
    return tokens * context + tokens * (tokens - 1) // 2


def _size(measured: PassMeasurement) -> int:
    return measured.streams * measured.tokens


def _work(measured: PassMeasurement) -> float:
    if measured.kind == "read":
        return float(read_work(measured.tokens, measured.context))
    return float(measured.streams * measured.tokens * measured.context)
