"""When a client that is refused should come back: from what runs and waits, and how fast that goes lately."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Sequence

SOONEST_SECONDS, LATEST_SECONDS = 0.1, 300.0


def endings(running: Sequence[float], waiting: Sequence[float]) -> list[float]:
    """When requests will end, in seconds from now, soonest first.

    Args:
        running: how long each running one still takes.
        waiting: how long each waiting one takes once it runs, in their order; one starts whenever one ends.
    """
    ends: list[float] = []
    heap = list(running)
    heapq.heapify(heap)
    for seconds in waiting:
        if not heap:
            break
        ends.append(heapq.heappop(heap))
        heapq.heappush(heap, ends[-1] + seconds)
    return ends + sorted(heap)


class RetryAfterEstimator:
    """Tells the refused when to come back, each a later moment at which a place is expected to be free.

    Were all told the same moment, all but one of them would be refused once more.
    """

    def __init__(self) -> None:
        self._told: deque[float] = deque()  # moments of the monotonic clock, at which somebody comes back

    def seconds(self, ends: Sequence[float]) -> float:
        """How long the next one should wait, where places become free at `ends` (seconds from now)."""
        now = time.monotonic()
        while self._told and self._told[0] <= now:
            self._told.popleft()
        place = min(len(self._told), 4 * len(ends))  # not all of them will come
        if not ends:
            seconds = SOONEST_SECONDS
        elif place < len(ends):
            seconds = ends[place]
        else:  # behind all that is known: at the pace of what is
            seconds = ends[-1] * (place + 1) / len(ends)
        seconds = _sensible(seconds)
        self._told.append(max(now + seconds, self._told[-1] if self._told else 0.0))
        return seconds


def seconds_until_room(running: Sequence[float], waiting: Sequence[tuple[float, int]], too_many: int) -> float:
    """When waiting requests of `too_many` tokens will have started: each takes seconds, and has a number of tokens."""
    ends = endings(running, [seconds for seconds, _ in waiting])
    for end, (_, num_tokens) in zip(ends, waiting, strict=False):
        too_many -= num_tokens
        if too_many <= 0:
            return _sensible(end)
    return _sensible(ends[-1] if ends else 0.0)


def _sensible(seconds: float) -> float:
    """No sooner than is worth a call, no later than anything can be told of."""
    return min(LATEST_SECONDS, max(SOONEST_SECONDS, seconds))
