"""What comes to a followed request: when it is due, and what the scheduler is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from gradellm_engine import GivenLogprobs, InvalidRequestError
from gradellm_server.engine_loop.follow_feed import FollowFeed

REQUEST: Any = object()


def given(*logprobs: float) -> list[GivenLogprobs]:
    return [GivenLogprobs(each) for each in logprobs]


class Scheduler:
    """Notes what it is given."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[Any] = []
        self._error = error

    def append(self, request: object, ids: Sequence[int], logprobs: Sequence[GivenLogprobs]) -> None:
        assert request is REQUEST
        if self._error is not None:
            raise self._error
        self.calls.append((list(ids), list(logprobs)))

    def flush(self, request: object) -> None:
        self.calls.append("flush")

    def finish(self, request: object) -> None:
        self.calls.append("finish")


def test_due_and_applied() -> None:
    now = [10.0]
    feed, scheduler = FollowFeed(0.5, lambda: now[0]), Scheduler()
    assert feed.due_seconds is None
    feed.append([1, 2], given(-1.0, -2.0))
    feed.append([3], given(-3.0))
    assert feed.due_seconds == 0
    feed.apply(scheduler, REQUEST)
    assert scheduler.calls == [([1, 2, 3], given(-1.0, -2.0, -3.0))]
    assert feed.due_seconds == 0.5
    now[0] = 10.25
    assert feed.due_seconds == 0.25
    feed.append([4], given(-4.0))
    now[0] = 10.6
    feed.apply(scheduler, REQUEST)
    assert scheduler.calls[1:] == [([4], given(-4.0))]  # the wait began anew
    now[0] = 10.75
    assert feed.due_seconds == 0
    feed.apply(scheduler, REQUEST)
    assert scheduler.calls[2:] == ["flush"]
    assert feed.due_seconds is None
    feed.finish()
    assert feed.due_seconds == 0
    for _ in range(2):
        feed.apply(scheduler, REQUEST)
    assert scheduler.calls[3:] == ["finish"]
    assert feed.due_seconds is None


def test_all_at_once() -> None:
    feed, scheduler = FollowFeed(0.0, lambda: 1.0), Scheduler()
    feed.append([1], given(-1.0))
    feed.finish()
    feed.apply(scheduler, REQUEST)
    assert scheduler.calls == [([1], given(-1.0)), "flush", "finish"]


def test_an_error_of_the_scheduler() -> None:
    feed = FollowFeed(1.0)
    feed.append([1], given(-1.0))
    with pytest.raises(InvalidRequestError, match="too many"):
        feed.apply(Scheduler(InvalidRequestError("append.ids", "too many")), REQUEST)
