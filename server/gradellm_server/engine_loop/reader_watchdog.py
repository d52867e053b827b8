"""Detects slow consumers: readers that leave a response unread for longer than a timeout."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LATE_SECONDS = 1.0  # a check that comes later than this means that the whole process was stopped


class ReaderWatchdog:
    """Calls `on_timeout` when a response has been unread for `timeout_seconds`; used on one event loop.

    At most one check is scheduled at a time, and none while nothing is unread.

    Args:
        timeout_seconds: how long a response may be unread.
        has_unread: whether a response is unread now.
        on_timeout: called at the timeout.

    Attributes:
        last_read_at: time of the event loop at which the reader last took a response, or had none to take.
        is_running: whether a check is scheduled.
    """

    def __init__(
        self, timeout_seconds: float, has_unread: Callable[[], bool], on_timeout: Callable[[], object]
    ) -> None:
        self._timeout_seconds, self._has_unread, self._on_timeout = timeout_seconds, has_unread, on_timeout
        self._loop = asyncio.get_running_loop()
        self.last_read_at = self._loop.time()
        self.is_running = False

    def start(self) -> None:
        """Schedule the first check."""
        self.is_running = True
        self._schedule(self._timeout_seconds)

    def _schedule(self, seconds: float) -> None:
        self._loop.call_later(seconds, self._check_reader, self._loop.time() + seconds)

    def _check_reader(self, due: float) -> None:
        if self._loop.time() - due > LATE_SECONDS:
            self.last_read_at = self._loop.time()  # after SIGSTOP or a paused VM, the reader had no time to read
        left = self._timeout_seconds - (self._loop.time() - self.last_read_at)
        self.is_running = self._has_unread() and left > 0
        if self.is_running:
            self._schedule(left)
        elif self._has_unread():
            self._on_timeout()
