"""Retries: which failed calls are retried, and when. Pure logic without I/O, for both clients.

Every call of the service is idempotent, so that every one may be retried.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradellm.errors import InvalidRequestError, OverloadedError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gradellm.errors import GradellmError

__all__ = ["Attempts", "Retry"]


@dataclass(frozen=True, slots=True)
class Retry:
    """Retry policy for calls that find no server or no capacity: exponential backoff with jitter.

    The delay doubles from `initial_seconds` to `max_seconds`, each time shortened by up to a half at random. A delay
    that the server asks for (`retry_after_seconds`) takes precedence. An OverloadedError with a reason but without such
    a delay is not retried: the request exceeds a limit that does not change.
    """

    attempts: int = 4
    """Attempts of a call before its first event. 1: the first failure is raised."""
    initial_seconds: float = 0.2
    max_seconds: float = 5.0
    longest_wait_seconds: float = 30.0
    """If a server asks for a longer delay, the error is raised instead."""
    on_wait: Callable[[GradellmError, float], object] | None = None
    """Called before each delay with the error and the delay in seconds."""
    resume_seconds: float = 60.0
    """How long after its failure a stream that had begun is resumed. 0: never."""
    starting_seconds: float = 0.0
    """How long a server that listens but is still loading its model is retried, regardless of `attempts`."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise InvalidRequestError.of("retry", f"attempts must be at least 1, not {self.attempts}")
        for name in ("initial_seconds", "max_seconds", "longest_wait_seconds", "resume_seconds", "starting_seconds"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InvalidRequestError.of("retry", f"{name} must be 0 or more, not {getattr(self, name)}")


class Attempts:
    """The retry state of one call.

    Args:
        retry: the policy.
        timeout: seconds for all attempts together; None for no limit.
        num_targets: number of targets; each is tried once before there is a delay.
        has_replicas: whether a target may resolve to several servers, so that a retry may reach another one.
        clock: returns seconds.
        jitter: returns a random number in 0..1.
    """

    def __init__(
        self,
        retry: Retry,
        timeout: float | None,
        *,
        num_targets: int = 1,
        has_replicas: bool = False,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._retry, self._clock, self._jitter = retry, clock, jitter
        self._num_targets, self._has_replicas = num_targets, has_replicas
        self._switched = 0  # changes of target since the last delay
        self.timeout = timeout
        self._until = None if timeout is None else clock() + timeout
        self._failed = 0  # consecutive attempts without an event
        self._waited = 0  # attempts at a starting server, which are counted apart
        self._broken_since: float | None = None
        self._starting_since: float | None = None
        self._has_begun = False

    @property
    def seconds_left(self) -> float | None:
        """The timeout of the next attempt; None for no limit."""
        return None if self._until is None else max(0.0, self._until - self._clock())

    def at_most(self, seconds: float) -> float:
        """Return `seconds`, or the remaining time if that is less."""
        return seconds if self._until is None else min(seconds, max(0.0, self._until - self._clock()))

    @property
    def has_begun(self) -> bool:
        """Whether an event has arrived."""
        return self._has_begun

    def progressed(self) -> None:
        """Record that a new event arrived."""
        self._has_begun, self._failed, self._waited, self._switched, self._broken_since = True, 0, 0, 0, None

    def next_delay(self, error: GradellmError, *, has_other: bool) -> float:
        """Return the delay in seconds before the next attempt. Raises `error` if there is none.

        Args:
            error: the error of the last attempt.
            has_other: whether another target can be tried without delay.
        """
        now = self._clock()
        if not isinstance(error, UnavailableError | OverloadedError):
            raise error
        if isinstance(error, OverloadedError) and error.retry_after_seconds is None and error.reason:
            raise error  # a limit that a retry would exceed again
        switches = has_other and self._switched < self._num_targets - 1
        self._switched = self._switched + 1 if switches else 0
        self._broken_since = now if self._broken_since is None else self._broken_since
        if self._may_wait_for_start(error, now):
            self._waited += not switches
        else:
            self._failed += not switches
            if not self._may_retry(now):
                raise error
        delay = 0.0 if switches else self._backoff(error)
        if delay > max(self._retry.longest_wait_seconds, self._retry.max_seconds):
            raise error
        if self._until is not None and now + delay >= self._until:
            raise error
        if delay and self._retry.on_wait is not None:
            self._retry.on_wait(error, delay)
        return delay

    def _may_retry(self, now: float) -> bool:
        if self._has_begun:
            return self._broken_since is not None and now - self._broken_since < self._retry.resume_seconds
        return self._failed < self._retry.attempts

    def _may_wait_for_start(self, error: UnavailableError | OverloadedError, now: float) -> bool:
        """Whether to keep waiting for a server that loads its model."""
        if not (isinstance(error, UnavailableError) and error.is_starting):
            return False
        self._starting_since = now if self._starting_since is None else self._starting_since
        return now - self._starting_since < self._retry.starting_seconds

    def _backoff(self, error: UnavailableError | OverloadedError) -> float:
        doubled: float = self._retry.initial_seconds * 2 ** min(self._failed + self._waited - 1, 20)
        delay = min(self._retry.max_seconds, doubled) * (1 - self._jitter() / 2)
        requested = error.retry_after_seconds
        if requested is None or (self._has_replicas and isinstance(error, UnavailableError)):
            return delay
        return max(delay, requested)
