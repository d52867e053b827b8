"""When a call that failed is tried again.

Every call of the service may be: it changes nothing. What is tried again, and when, is decided here without input or
output, for both clients.
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
    """How often, and after how long, a call is tried again that found no server or no room.

    The pause doubles from `initial_seconds` to `max_seconds`, each time shortened by up to a half at random, so that
    many clients do not come back together. Where the server says how long to wait, that counts. What it has no room for
    and names no time for, a later try does not mend.
    """

    attempts: int = 4
    """Tries of a call from which nothing has come yet. 1: the first failure is raised."""
    initial_seconds: float = 0.2
    max_seconds: float = 5.0
    longest_wait_seconds: float = 30.0
    """Where a server asks to wait longer, its refusal is raised instead."""
    on_wait: Callable[[GradellmError, float], object] | None = None
    """Is told what failed and how many seconds will be waited."""
    resume_seconds: float = 60.0
    """For so long after it broke, a stream that had begun is taken up again. 0: never."""
    starting_seconds: float = 0.0
    """For so long a server that listens and does not answer yet, since it loads its model, is asked again, whatever
    `attempts` says."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise InvalidRequestError.of("retry", f"attempts must be at least 1, not {self.attempts}")
        for name in ("initial_seconds", "max_seconds", "longest_wait_seconds", "resume_seconds", "starting_seconds"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InvalidRequestError.of("retry", f"{name} must be 0 or more, not {getattr(self, name)}")


class Attempts:
    """The tries of one call.

    Args:
        retry: how often.
        timeout: seconds for all tries together; None for no limit.
        num_targets: how many there are: each is asked once before there is a pause.
        has_replicas: whether one target may stand for several servers, so that another one may have what this lacks.
        clock: seconds.
        share: a random share of 0..1.
    """

    def __init__(
        self,
        retry: Retry,
        timeout: float | None,
        *,
        num_targets: int = 1,
        has_replicas: bool = False,
        clock: Callable[[], float] = time.monotonic,
        share: Callable[[], float] = random.random,
    ) -> None:
        self._retry, self._clock, self._share = retry, clock, share
        self._num_targets, self._has_replicas = num_targets, has_replicas
        self._switched = 0  # from one target to the next since the last pause
        self.timeout = timeout
        self._until = None if timeout is None else clock() + timeout
        self._failed = 0  # tries in a row from which nothing came
        self._waited = 0  # tries, beside them, of a server that starts
        self._broken_since: float | None = None
        self._starting_since: float | None = None
        self._has_begun = False

    @property
    def seconds_left(self) -> float | None:
        """For the next try; None for no limit."""
        return None if self._until is None else max(0.0, self._until - self._clock())

    def at_most(self, seconds: float) -> float:
        """So long, or for what is left."""
        return seconds if self._until is None else min(seconds, max(0.0, self._until - self._clock()))

    @property
    def has_begun(self) -> bool:
        """Whether anything came yet."""
        return self._has_begun

    def progressed(self) -> None:
        """Something came that the caller had not had before."""
        self._has_begun, self._failed, self._waited, self._switched, self._broken_since = True, 0, 0, 0, None

    def pause_after(self, error: GradellmError, *, has_other: bool) -> float:
        """Return how many seconds to wait before the next try; raise `error` where there is none.

        Args:
            error: what came of the last one.
            has_other: whether another server can be asked at once.
        """
        now = self._clock()
        if not isinstance(error, UnavailableError | OverloadedError):
            raise error
        if isinstance(error, OverloadedError) and error.retry_after_seconds is None and error.reason:
            raise error  # the request is too large for what the caller may ever take
        switches = has_other and self._switched < self._num_targets - 1
        self._switched = self._switched + 1 if switches else 0
        self._broken_since = now if self._broken_since is None else self._broken_since
        if self._is_worth_waiting(error, now):
            self._waited += not switches
        else:
            self._failed += not switches
            if not self._may_go_on(now):
                raise error
        pause = 0.0 if switches else self._pause(error)
        if pause > max(self._retry.longest_wait_seconds, self._retry.max_seconds):
            raise error
        if self._until is not None and now + pause >= self._until:
            raise error
        if pause and self._retry.on_wait is not None:
            self._retry.on_wait(error, pause)
        return pause

    def _may_go_on(self, now: float) -> bool:
        if self._has_begun:
            return self._broken_since is not None and now - self._broken_since < self._retry.resume_seconds
        return self._failed < self._retry.attempts

    def _is_worth_waiting(self, error: UnavailableError | OverloadedError, now: float) -> bool:
        """Whether a server that starts may still be waited for."""
        if not (isinstance(error, UnavailableError) and error.is_starting):
            return False
        self._starting_since = now if self._starting_since is None else self._starting_since
        return now - self._starting_since < self._retry.starting_seconds

    def _pause(self, error: UnavailableError | OverloadedError) -> float:
        grown: float = self._retry.initial_seconds * 2 ** min(self._failed + self._waited - 1, 20)
        pause = min(self._retry.max_seconds, grown) * (1 - self._share() / 2)
        asked = error.retry_after_seconds
        if asked is None or (self._has_replicas and isinstance(error, UnavailableError)):
            return pause
        return max(pause, asked)
