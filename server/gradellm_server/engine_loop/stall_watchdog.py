"""Detects a stalled engine: a pass of the model that takes longer than `stall_seconds`.

The time of a pass counts only while this process runs: between two checks at most `LATE_SECONDS` are counted, so that
SIGSTOP or a paused virtual machine is not a stall. Prefill is chunked (at most 512 tokens a pass, 2,048 on a GPU), so a
busy engine is not mistaken for a stalled one if `stall_seconds` exceeds the duration of its slowest pass.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from gradellm_server.engine_loop.engine_thread import EngineThread
from gradellm_server.engine_loop.errors import EngineFailedError

CHECK_SECONDS = 0.25  # a failed engine must be NOT_SERVING within 2 s
LATE_SECONDS = 1.0  # counted between two checks, at most; never more than half of `stall_seconds`

logger = logging.getLogger(__name__)


class StallWatchdog:
    """Marks an engine thread as failed while it is stalled, and lets it recover.

    Args:
        thread: the engine thread.
        stall_seconds: how long a pass may take.
    """

    def __init__(self, thread: EngineThread, stall_seconds: float) -> None:
        self._thread, self._stall_seconds = thread, stall_seconds
        self._silent_seconds = 0.0  # since the last heartbeat, as far as this process ran

    def check(self) -> None:
        """Compare the age of the heartbeat with the limit."""
        thread = self._thread
        self._silent_seconds = min(self._silent_seconds, thread.heartbeat_age)
        is_stalled = self._silent_seconds > self._stall_seconds
        if thread.is_alive and is_stalled:
            logger.critical("Engine stalled for %.1f s; marking NOT_SERVING", self._silent_seconds)
            thread.mark_failed(EngineFailedError("is stalled in a pass of the model", thread.restart_seconds))
        elif not thread.is_alive and not is_stalled and thread.recover():
            logger.warning("Engine has recovered")

    async def run(self, after_check: Callable[[], Awaitable[None]]) -> None:
        """Check again and again, until cancelled; `after_check` is awaited each time."""
        max_counted = min(LATE_SECONDS, self._stall_seconds / 2)
        checked_at = time.monotonic()
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            now = time.monotonic()
            self._silent_seconds += min(now - checked_at, max_counted)
            checked_at = now
            self.check()
            await after_check()
