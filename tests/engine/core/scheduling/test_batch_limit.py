"""The limit of a pass after memory ran out; `tests/engine/core/scheduler/test_failures.py` runs real passes."""

from __future__ import annotations

from typing import Any

import pytest

from gradellm_engine import OutOfMemoryError
from gradellm_engine.core.scheduling.batch_limit import PASSES_BEFORE_GROWTH, BatchLimit, fail_on_error


class Request:
    num_tokens, num_computed_tokens = 7, 5

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.rolled_back: tuple[int, int] | None = None

    def roll_back(self, *numbers: int) -> None:
        self.rolled_back = numbers  # type: ignore[assignment]

    def fail(self, error: Exception) -> None:
        self.error = error


def requests(count: int) -> Any:
    return [Request() for _ in range(count)]


def test_shrinks_and_grows() -> None:
    limit, five = BatchLimit(retries=True), requests(5)
    assert limit.fits(five)
    with limit.guard(five, 8):
        raise MemoryError
    assert limit.max_requests == 2
    assert all(request.rolled_back == (7, 5) and request.error is None for request in five)
    assert not limit.fits(five)
    for _ in range(PASSES_BEFORE_GROWTH):
        with limit.guard(five[:1], 8):
            pass
    assert limit.max_requests == 2  # smaller passes say nothing
    for expected in (4, None):
        for _ in range(PASSES_BEFORE_GROWTH):
            with limit.guard(five[:4], 8):
                pass
        assert limit.max_requests == expected


def test_a_request_that_does_not_fit_by_itself_fails() -> None:
    limit, one = BatchLimit(retries=True), requests(1)
    with limit.guard(one, 8):
        raise MemoryError
    assert isinstance(one[0].error, OutOfMemoryError)


@pytest.mark.parametrize("error", [MemoryError(), ValueError("wrong")])
def test_without_retries_all_fail(error: Exception) -> None:
    limit, two = BatchLimit(retries=False), requests(2)
    with limit.guard(two, 8):
        raise error
    assert [request.error for request in two] == [error, error]
    assert limit.max_requests is None


def test_fail_on_error() -> None:
    (request,) = one = requests(1)
    with fail_on_error(one):
        raise OutOfMemoryError
    assert isinstance(request.error, OutOfMemoryError)
