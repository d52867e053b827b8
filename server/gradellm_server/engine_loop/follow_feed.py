"""What a client sends to a followed request, on its way from an event loop to the engine thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from gradellm_engine import FollowedRequest, GivenLogprobs

Clock = Callable[[], float]


class FollowScheduler(Protocol):
    """The calls of the engine's scheduler for followed requests."""

    def append(self, request: FollowedRequest, ids: Sequence[int], logprobs: Sequence[GivenLogprobs]) -> None:
        """Add tokens."""

    def flush(self, request: FollowedRequest) -> None:
        """Explain what there is."""

    def finish(self, request: FollowedRequest) -> None:
        """End it once it is explained."""


class FollowFeed:
    """Tokens and the end of one followed completion; safe to use from any thread.

    Fewer tokens than a chunk are explained `flush_seconds` after the last one has come.
    """

    def __init__(self, flush_seconds: float, now: Clock = time.monotonic) -> None:
        self._flush_seconds, self._now = flush_seconds, now
        self._lock = threading.Lock()
        self._ids: list[int] = []
        self._logprobs: list[GivenLogprobs] = []
        self._is_finished = self._finish_is_applied = False
        self._flush_at: float | None = None

    def append(self, ids: Sequence[int], logprobs: Sequence[GivenLogprobs]) -> None:
        """Add tokens, with the other engine's log-probabilities at each."""
        with self._lock:
            self._ids += ids
            self._logprobs += logprobs
            self._flush_at = self._now() + self._flush_seconds

    def finish(self) -> None:
        """No more tokens come."""
        with self._lock:
            self._is_finished = True

    @property
    def due_seconds(self) -> float | None:
        """Seconds until the engine thread has to apply something, 0 for now; None for nothing."""
        with self._lock:
            if self._ids or self._is_finished != self._finish_is_applied:
                return 0.0
            return None if self._flush_at is None else max(0.0, self._flush_at - self._now())

    def apply(self, scheduler: FollowScheduler, request: FollowedRequest) -> None:
        """Give the scheduler what has come; on the engine thread, between two steps.

        Raises:
            InvalidRequestError: if the tokens do not fit.
            BusyError: if the KV cache has no room for them now.
        """
        with self._lock:
            ids, logprobs, is_finished = self._ids, self._logprobs, self._is_finished
            self._ids, self._logprobs = [], []
            is_flushed = self._flush_at is not None and self._flush_at <= self._now()
            if is_flushed:
                self._flush_at = None
        if ids:
            scheduler.append(request, ids, logprobs)
        if is_flushed:
            scheduler.flush(request)
        if is_finished and not self._finish_is_applied:
            self._finish_is_applied = True
            scheduler.finish(request)
