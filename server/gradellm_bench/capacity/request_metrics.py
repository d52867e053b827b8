"""What became of requests, on a real scheduler or a simulated one: the same record for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gradellm_bench.capacity.traffic import Mode, SimulatedRequest

Percentile = tuple[float, float, float]  # 50th, 95th, 99th


@dataclass
class RequestRecord:
    """One request's fate; times in seconds from the run's beginning.

    Attributes:
        request: what it was.
        refused: whether there was no place for it.
        tokens: when each token left.
        vectors: when each token's scores left.
        ended: when it was done; None where the run was over before.
    """

    request: SimulatedRequest
    refused: bool = False
    tokens: list[float] = field(default_factory=list)
    vectors: list[float] = field(default_factory=list)
    ended: float | None = None


@dataclass(frozen=True)
class Summary:
    """What a run was like; seconds.

    Attributes:
        requests: that came while it was counted.
        refused: share of them.
        first_token: from a request's coming to its first token.
        gap: between a stream's tokens.
        lag: from a token to its scores; zeros where nothing was explained.
        tokens_per_second: generated.
        vectors_per_second: told.
        busy: share of time in passes.
        running: streams that had a place, in the mean.
    """

    requests: int
    refused: float
    first_token: Percentile
    gap: Percentile
    lag: Percentile
    tokens_per_second: float
    vectors_per_second: float
    busy: float
    running: float

    @classmethod
    def of(cls, served: Sequence[RequestRecord], *, start: float, end: float, busy_seconds: float) -> Summary:
        """Of what came between `start` and `end`; `busy_seconds` is the time in passes of them all together."""
        counted = [its for its in served if start <= its.request.arrival <= end]
        streams = [its for its in counted if its.request.mode is not Mode.EVALUATE and not its.refused]
        told = [its for its in streams if its.tokens]
        gaps = [np.diff(its.tokens) for its in told if len(its.tokens) > 1]
        lags = [np.subtract(its.vectors, its.tokens[: len(its.vectors)]) for its in told if its.vectors]
        ends = [its.ended for its in served if its.ended is not None and start <= its.ended <= end]
        span = end - start
        everything = np.array([moment for its in served for moment in its.tokens])
        vectors = np.array([moment for its in served for moment in its.vectors])
        stays = [
            max(0.0, min(end, its.ended if its.ended is not None else end) - max(start, its.tokens[0]))
            for its in served
            if its.tokens and its.tokens[0] < end
        ]
        return cls(
            requests=len(counted),
            refused=sum(its.refused for its in counted) / max(1, len(counted)),
            first_token=_percentiles(np.array([its.tokens[0] - its.request.arrival for its in told])),
            gap=_percentiles(np.concatenate(gaps or [np.zeros(0)])),
            lag=_percentiles(np.concatenate(lags or [np.zeros(0)])),
            tokens_per_second=_within(everything, start, end) / span,
            vectors_per_second=_within(vectors, start, end) / span,
            busy=busy_seconds / span if ends or told else 0.0,
            running=sum(stays) / span,
        )


def _within(times: np.ndarray[tuple[int], np.dtype[np.float64]], start: float, end: float) -> int:
    return int(((times >= start) & (times < end)).sum())


def _percentiles(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Percentile:
    if not len(values):
        return (0.0, 0.0, 0.0)
    middle, high, highest = (float(value) for value in np.percentile(values, (50, 95, 99)))
    return (middle, high, highest)
