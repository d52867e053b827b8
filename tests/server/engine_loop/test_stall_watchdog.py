"""The stall watchdog counts only the time in which the process runs."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from gradellm_server.engine_loop.stall_watchdog import StallWatchdog


@pytest.mark.parametrize("pauses", [[300.0], [300.0, 0.25, 300.0], [0.25] * 5])
def test_a_pass_may_take_stall_seconds_of_running_time(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first checks are late by the pauses; the later ones are in time, until the limit is reached."""
    now = 0.0

    class Thread:
        is_alive = True
        restart_seconds = 1.0
        is_marked = False

        @property
        def heartbeat_age(self) -> float:
            return now

        def mark_failed(self, error: Exception) -> None:
            self.is_marked, self.is_alive = True, False

    async def sleep(seconds: float) -> None:
        nonlocal now
        if not pauses and thread.is_marked:
            raise asyncio.CancelledError
        now += pauses.pop(0) if pauses else seconds
        if pauses:
            assert not thread.is_marked

    async def after_check() -> None:
        pass

    thread: Any = Thread()
    late = sum(min(pause, 1.0) for pause in pauses)
    frozen = sum(pause - min(pause, 1.0) for pause in pauses)
    watchdog = StallWatchdog(thread, stall_seconds=10.0)
    monkeypatch.setattr("gradellm_server.engine_loop.stall_watchdog.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr("gradellm_server.engine_loop.stall_watchdog.asyncio", SimpleNamespace(sleep=sleep))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(watchdog.run(after_check))
    assert now - frozen == pytest.approx(10.25)
    assert late < 10
