"""Retry delays of rejected requests."""

from __future__ import annotations

import pytest

from gradellm_server.engine_loop.retry_after import (
    MAX_RETRY_SECONDS,
    MIN_RETRY_SECONDS,
    RetryAfterEstimator,
    completion_times,
    seconds_until_room,
)


def test_completion_times_of_running_and_queued_requests() -> None:
    assert completion_times([3.0, 1.0], []) == [1.0, 3.0]
    assert completion_times([3.0, 1.0], [1.0, 5.0]) == [1.0, 2.0, 3.0, 7.0]  # at 1 a slot is free until 2, then until 7
    assert completion_times([], [1.0]) == []


def test_retries_are_spread_over_the_expected_completions() -> None:
    come_back = RetryAfterEstimator()
    assert [come_back.seconds([1.0, 2.0, 4.0]) for _ in range(3)] == [1.0, 2.0, 4.0]
    assert come_back.seconds([1.0, 2.0, 4.0]) == pytest.approx(16 / 3)  # extrapolated from three completions


def test_the_delay_is_clamped() -> None:
    assert RetryAfterEstimator().seconds([]) == MIN_RETRY_SECONDS
    assert RetryAfterEstimator().seconds([0.0]) == MIN_RETRY_SECONDS
    assert RetryAfterEstimator().seconds([1e9]) == MAX_RETRY_SECONDS


def test_there_is_room_once_enough_queued_tokens_have_started() -> None:
    waiting = [(10.0, 100), (10.0, 50)]
    assert seconds_until_room([2.0, 5.0], waiting, 60) == 2.0
    assert seconds_until_room([2.0, 5.0], waiting, 120) == 5.0
