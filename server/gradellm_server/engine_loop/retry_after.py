"""Retry delays of rejected requests, estimated from the running and queued requests and their recent speed."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Sequence

MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.1, 300.0
MAX_RETRIES_PER_COMPLETION = 4  # not all rejected clients retry


def completion_times(running: Sequence[float], queued: Sequence[float]) -> list[float]:
    """When requests will complete, in seconds from now, ascending.

    Args:
        running: remaining seconds of each running request.
        queued: duration in seconds of each queued request, in queue order; one starts whenever one completes.
    """
    times: list[float] = []
    heap = list(running)
    heapq.heapify(heap)
    for seconds in queued:
        if not heap:
            break
        times.append(heapq.heappop(heap))
        heapq.heappush(heap, times[-1] + seconds)
    return times + sorted(heap)


class RetryAfterEstimator:
    """Spreads retries: each rejected client is given the next expected completion.

    With one and the same delay for all, all but one of them would be rejected again.
    """

    def __init__(self) -> None:
        self._retries_at: deque[float] = deque()  # monotonic times at which earlier rejected clients retry

    def seconds(self, completions: Sequence[float]) -> float:
        """The delay for the next rejected client, where requests complete at `completions` (seconds from now)."""
        now = time.monotonic()
        while self._retries_at and self._retries_at[0] <= now:
            self._retries_at.popleft()
        position = min(len(self._retries_at), MAX_RETRIES_PER_COMPLETION * len(completions))
        if not completions:
            seconds = MIN_RETRY_SECONDS
        elif position < len(completions):
            seconds = completions[position]
        else:  # beyond the known completions: extrapolate their rate
            seconds = completions[-1] * (position + 1) / len(completions)
        seconds = _clamp(seconds)
        self._retries_at.append(max(now + seconds, self._retries_at[-1] if self._retries_at else 0.0))
        return seconds


def seconds_until_room(running: Sequence[float], queued: Sequence[tuple[float, int]], excess_tokens: int) -> float:
    """When queued requests of `excess_tokens` in all will have started.

    Args:
        running: remaining seconds of each running request.
        queued: seconds and number of tokens of each queued request, in queue order.
        excess_tokens: tokens that have to be completed first.
    """
    completions = completion_times(running, [seconds for seconds, _ in queued])
    for time_left, (_, num_tokens) in zip(completions, queued, strict=False):
        excess_tokens -= num_tokens
        if excess_tokens <= 0:
            return _clamp(time_left)
    return _clamp(completions[-1] if completions else 0.0)


def _clamp(seconds: float) -> float:
    return min(MAX_RETRY_SECONDS, max(MIN_RETRY_SECONDS, seconds))
