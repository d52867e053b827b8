"""Reader threads, which validate and tokenize requests outside the engine thread, before the model runs.

Short and long requests have a thread each, so that a long request does not delay short ones; each thread reads in
order of arrival. Limits on counts are checked first and bound the work; long native calls release the GIL
(`gradellm_engine.tokenization.encoder`), and between them reading stops if the caller has disconnected.
"""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from gradellm_engine import interruption_point

SHORT_BYTES = 32 * 1024  # longer requests are read on a thread of their own

Item = TypeVar("Item")


class ReadCancelledError(Exception):
    """The caller of a request disconnected, or was answered otherwise, while the request was read."""


class RequestReader(Generic[Item]):
    """Reads requests on two threads.

    Args:
        read: reads one request; it must not raise, since an error ends the thread.
        is_wanted: whether the caller still waits.
    """

    def __init__(self, read: Callable[[Item], None], is_wanted: Callable[[Item], bool]) -> None:
        self._read, self._is_wanted = read, is_wanted
        self._queues: dict[str, queue.SimpleQueue[Item | None]] = {
            name: queue.SimpleQueue() for name in ("short", "long")
        }
        self._started_at: dict[str, float] = {}  # of the request that each thread reads now
        self._threads = [
            threading.Thread(target=self._run, args=(name,), name=f"gradellm-read-{name}", daemon=True)
            for name in self._queues
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, item: Item, num_bytes: int) -> None:
        """Queue a request of `num_bytes`; from any thread."""
        self._queues["short" if num_bytes <= SHORT_BYTES else "long"].put(item)

    @property
    def oldest_seconds(self) -> float:
        """For how long the slower of the two threads has been reading its present request; 0 if both are idle."""
        now = time.monotonic()
        return max((now - started_at for started_at in list(self._started_at.values())), default=0.0)

    def stop(self) -> None:
        """End both threads after their present requests."""
        for items in self._queues.values():
            items.put(None)

    def _run(self, name: str) -> None:
        items = self._queues[name]
        while (item := items.get()) is not None:
            self._started_at[name] = time.monotonic()
            contextvars.copy_context().run(self._read_one, item)
            self._started_at.pop(name, None)
            del item  # else it stays in memory until the next one arrives

    def _read_one(self, item: Item) -> None:
        def check() -> None:
            if not self._is_wanted(item):
                raise ReadCancelledError

        interruption_point.set(check)
        self._read(item)
