"""When the refused are told to come back."""

from __future__ import annotations

import pytest

from gradellm_server.retry_after import (
    LATEST_SECONDS,
    SOONEST_SECONDS,
    RetryAfterEstimator,
    endings,
    seconds_until_room,
)


def test_endings_of_what_runs_and_of_what_waits_for_it() -> None:
    assert endings([3.0, 1.0], []) == [1.0, 3.0]
    assert endings([3.0, 1.0], [1.0, 5.0]) == [1.0, 2.0, 3.0, 7.0]  # 1 ends, 1 more by 2, then 5 more by 7
    assert endings([], [1.0]) == []


def test_the_refused_come_back_one_after_the_other() -> None:
    come_back = RetryAfterEstimator()
    assert [come_back.seconds([1.0, 2.0, 4.0]) for _ in range(3)] == [1.0, 2.0, 4.0]
    assert come_back.seconds([1.0, 2.0, 4.0]) == pytest.approx(16 / 3)  # a fourth place at the pace of three


def test_it_is_never_nothing_and_never_too_long() -> None:
    assert RetryAfterEstimator().seconds([]) == SOONEST_SECONDS
    assert RetryAfterEstimator().seconds([0.0]) == SOONEST_SECONDS
    assert RetryAfterEstimator().seconds([1e9]) == LATEST_SECONDS


def test_room_is_there_once_enough_of_what_waits_has_started() -> None:
    waiting = [(10.0, 100), (10.0, 50)]
    assert seconds_until_room([2.0, 5.0], waiting, 60) == 2.0
    assert seconds_until_room([2.0, 5.0], waiting, 120) == 5.0
