"""Threads that read requests beside the engine thread: what text, counts and settings say, before the model runs.

Short and long requests have a thread each, so that a long one holds up no short one; within each they are read in the
order of their coming. Reading is bounded by the limits that a request is checked against first, its long parts release
the interpreter's lock (`gradellm_engine.tokenization.encoder`), and between them it ends where its caller does not
wait any more.
"""

from __future__ import annotations

import contextvars
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from gradellm_engine import interruption_point

SHORT_BYTES = 32 * 1024  # of a request; longer ones are read on a thread of their own

logger = logging.getLogger(__name__)

Request = TypeVar("Request")


class NotWantedError(Exception):
    """The caller has gone, or does not wait any longer."""


class ReadingThreads(Generic[Request]):
    """Reads requests.

    Args:
        read: reads one; whatever it raises ends the thread, so it should not.
        is_wanted: whether its caller still waits.
    """

    def __init__(self, read: Callable[[Request], None], is_wanted: Callable[[Request], bool]) -> None:
        self._read, self._is_wanted = read, is_wanted
        self._queues: dict[str, queue.SimpleQueue[Request | None]] = {
            name: queue.SimpleQueue() for name in ("short", "long")
        }
        self._began: dict[str, float] = {}  # when the one began that a thread has in hand
        self._threads = [
            threading.Thread(target=self._run, args=(name,), name=f"gradellm-read-{name}", daemon=True)
            for name in self._queues
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, request: Request, num_bytes: int) -> None:
        """Queue a request of so many bytes; from any thread."""
        self._queues["short" if num_bytes <= SHORT_BYTES else "long"].put(request)

    @property
    def oldest_seconds(self) -> float:
        """For how long the request has been read that takes longest now; 0 where none is."""
        now = time.monotonic()
        return max((now - began for began in list(self._began.values())), default=0.0)

    def stop(self) -> None:
        """End the threads after what they have in hand."""
        for waiting in self._queues.values():
            waiting.put(None)

    def _run(self, name: str) -> None:
        waiting = self._queues[name]
        while (request := waiting.get()) is not None:
            self._began[name] = time.monotonic()
            contextvars.copy_context().run(self._read_one, request)
            self._began.pop(name, None)
            del request  # what it holds is not kept until the next one comes

    def _read_one(self, request: Request) -> None:
        def check() -> None:
            if not self._is_wanted(request):
                raise NotWantedError

        interruption_point.set(check)
        self._read(request)
