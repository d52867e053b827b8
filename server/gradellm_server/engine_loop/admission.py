"""Admission control: the limits of the queue, in requests and in tokens."""

from __future__ import annotations

from gradellm_engine import Engine, Request
from gradellm_server.engine_loop.errors import QueueFullError
from gradellm_server.engine_loop.retry_after import RetryAfterEstimator, completion_times, seconds_until_room


class AdmissionControl:
    """Rejects requests beyond the queue's limits, with an estimate of when to retry.

    Args:
        engine: the engine that runs the requests.
        max_queued: requests that may be queued in addition to those that run.
        max_queued_tokens: tokens of all queued requests, prompts and completions at their longest. One request alone
            may be longer.
    """

    def __init__(self, engine: Engine, *, max_queued: int, max_queued_tokens: int) -> None:
        self._scheduler = engine.scheduler
        self._max_running, self._max_followed = engine.scheduler.max_running, engine.scheduler.max_followed
        self._max_queued = max_queued
        self._max_queued_tokens = max_queued_tokens
        self._retry_after = RetryAfterEstimator()

    def check_queue(self, num_unfinished: int, *, is_followed: bool = False) -> None:
        """Check that a request can be queued, by what is known before it is read.

        Followed requests have limits of their own; `num_unfinished` counts requests of the same kind.

        Raises:
            QueueFullError: if a limit is reached.
        """
        num_running = sum(request.is_followed == is_followed for request in list(self._scheduler.running))
        max_running = self._max_followed if is_followed else self._max_running
        if num_unfinished >= max_running + self._max_queued:
            raise QueueFullError(
                f"{num_running} {'completions followed' if is_followed else 'requests running'}, "
                f"{max(0, num_unfinished - num_running)} queued (limits {max_running} and {self._max_queued})",
                self._retry_after.seconds(self._completion_times()),
            )
        queued = list(self._scheduler.waiting)
        num_tokens = sum(request.num_slot_tokens for request in queued)
        if queued and num_tokens >= self._max_queued_tokens:
            raise self._too_many_tokens(queued, num_tokens, 1)

    def check_tokens(self, request: Request) -> None:
        """Check that the queue has room for a request's tokens.

        Raises:
            QueueFullError: if it has not.
        """
        queued = list(self._scheduler.waiting)
        num_tokens = sum(other.num_slot_tokens for other in queued)
        if queued and num_tokens + request.num_slot_tokens > self._max_queued_tokens:
            raise self._too_many_tokens(queued, num_tokens, request.num_slot_tokens)

    def _too_many_tokens(self, queued: list[Request], num_tokens: int, more: int) -> QueueFullError:
        left = self._scheduler.seconds_left
        seconds = seconds_until_room(
            [left(request) for request in list(self._scheduler.running)],
            [(left(request), request.num_slot_tokens) for request in queued],
            num_tokens + more - self._max_queued_tokens,
        )
        return QueueFullError(
            f"{len(queued)} queued requests have {num_tokens} tokens (limit {self._max_queued_tokens} tokens)", seconds
        )

    def _completion_times(self) -> list[float]:
        running, queued = list(self._scheduler.running), list(self._scheduler.waiting)
        left = self._scheduler.seconds_left
        return completion_times([left(request) for request in running], [left(request) for request in queued])
