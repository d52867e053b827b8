"""Records of requests on a real or simulated scheduler, and their summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gradellm_bench.capacity.traffic import Mode, SimulatedRequest

Percentile = tuple[float, float, float]  # 50th, 95th, 99th


@dataclass
class RequestRecord:
    """The course of one request; times in seconds from the start of the run.

    Attributes:
        request: the request.
        refused: whether it was rejected because the queue was full.
        tokens: time of each token.
        vectors: time of each token's scores.
        ended: time of its end; None if the run ended before.
    """

    request: SimulatedRequest
    refused: bool = False
    tokens: list[float] = field(default_factory=list)
    vectors: list[float] = field(default_factory=list)
    ended: float | None = None


@dataclass(frozen=True)
class Summary:
    """Metrics of a run; times in seconds.

    Attributes:
        requests: requests that arrived while counting.
        refused: share of rejected requests.
        first_token: time to first token.
        gap: time between tokens.
        lag: time from a token to its scores; zeros without attribution.
        tokens_per_second: tokens generated.
        vectors_per_second: attribution rows computed.
        busy: share of time in passes.
        running: mean number of running streams.
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
        """Summarise the requests that arrived between `start` and `end`; `busy_seconds` is the total time in passes."""
        counted = [each for each in served if start <= each.request.arrival <= end]
        streams = [each for each in counted if each.request.mode is not Mode.EVALUATE and not each.refused]
        answered = [each for each in streams if each.tokens]
        gaps = [np.diff(each.tokens) for each in answered if len(each.tokens) > 1]
        lags = [np.subtract(each.vectors, each.tokens[: len(each.vectors)]) for each in answered if each.vectors]
        ends = [each.ended for each in served if each.ended is not None and start <= each.ended <= end]
        span = end - start
        everything = np.array([moment for each in served for moment in each.tokens])
        vectors = np.array([moment for each in served for moment in each.vectors])
        stays = [
            max(0.0, min(end, each.ended if each.ended is not None else end) - max(start, each.tokens[0]))
            for each in served
            if each.tokens and each.tokens[0] < end
        ]
        return cls(
            requests=len(counted),
            refused=sum(each.refused for each in counted) / max(1, len(counted)),
            first_token=_percentiles(np.array([each.tokens[0] - each.request.arrival for each in answered])),
            gap=_percentiles(np.concatenate(gaps or [np.zeros(0)])),
            lag=_percentiles(np.concatenate(lags or [np.zeros(0)])),
            tokens_per_second=_within(everything, start, end) / span,
            vectors_per_second=_within(vectors, start, end) / span,
            busy=busy_seconds / span if ends or answered else 0.0,
            running=sum(stays) / span,
        )


def _within(times: np.ndarray[tuple[int], np.dtype[np.float64]], start: float, end: float) -> int:
    return int(((times >= start) & (times < end)).sum())


def _percentiles(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Percentile:
    if not len(values):
        return (0.0, 0.0, 0.0)
    middle, high, highest = (float(value) for value in np.percentile(values, (50, 95, 99)))
    return (middle, high, highest)
