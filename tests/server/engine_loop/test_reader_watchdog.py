"""The reader watchdog: a timeout while something is unread, and none otherwise."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from gradellm_server.engine_loop import reader_watchdog
from gradellm_server.engine_loop.reader_watchdog import ReaderWatchdog

TIMEOUT_SECONDS = 0.1


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


def test_an_unread_response_times_out_once() -> None:
    async def test() -> None:
        timeouts: list[float] = []
        watchdog = ReaderWatchdog(TIMEOUT_SECONDS, lambda: True, lambda: timeouts.append(time.monotonic()))
        began = time.monotonic()
        watchdog.start()
        await asyncio.sleep(4 * TIMEOUT_SECONDS)
        assert len(timeouts) == 1
        assert timeouts[0] - began >= TIMEOUT_SECONDS
        assert not watchdog.is_running

    run(test)


def test_reading_postpones_the_timeout() -> None:
    async def test() -> None:
        timeouts: list[None] = []
        watchdog = ReaderWatchdog(1.0, lambda: True, lambda: timeouts.append(None))
        watchdog.start()
        for _ in range(8):
            await asyncio.sleep(0.2)
            watchdog.last_read_at = asyncio.get_running_loop().time()
        assert timeouts == []
        assert watchdog.is_running

    run(test)


def test_nothing_unread_ends_the_checks() -> None:
    async def test() -> None:
        timeouts: list[None] = []
        watchdog = ReaderWatchdog(TIMEOUT_SECONDS, lambda: False, lambda: timeouts.append(None))
        watchdog.start()
        await asyncio.sleep(3 * TIMEOUT_SECONDS)
        assert timeouts == []
        assert not watchdog.is_running

    run(test)


def test_time_in_which_the_process_was_stopped_does_not_count() -> None:
    async def test() -> None:
        timeouts: list[None] = []
        watchdog = ReaderWatchdog(0.5, lambda: True, lambda: timeouts.append(None))
        watchdog.start()
        time.sleep(0.5 + reader_watchdog.LATE_SECONDS + 0.1)  # noqa: ASYNC251 (blocking is intended: as SIGSTOP)
        await asyncio.sleep(0.1)
        assert timeouts == []
        await asyncio.sleep(1.0)
        assert timeouts == [None]

    run(test)
