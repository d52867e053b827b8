"""The responses of one request, on their way from the engine thread to a handler on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Generic, TypeVar

from gradellm_server import fault_injection
from gradellm_server.engine_loop.errors import RejectedError
from gradellm_server.engine_loop.reader_watchdog import ReaderWatchdog

Response = TypeVar("Response")

MAX_UNREAD_BATCHES = 64  # backpressure: a request that is this many passes ahead of its reader is not scheduled


class ResponseQueue(Generic[Response]):
    """A queue between threads, in batches of one pass each, with backpressure and a timeout for its reader.

    Iterate it on the event loop that made it.

    Args:
        reader_timeout_seconds: how long a batch may be unread.
        on_space: called when a full queue has space again.
        on_slow_reader: called when a batch has been unread for too long.
        on_loop_closed: called when the event loop has ended, so that the responses have no reader.
    """

    def __init__(
        self,
        reader_timeout_seconds: float,
        *,
        on_space: Callable[[], object],
        on_slow_reader: Callable[[], object],
        on_loop_closed: Callable[[], object],
    ) -> None:
        self._on_space, self._on_slow_reader, self._on_loop_closed = on_space, on_slow_reader, on_loop_closed
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[Sequence[Response] | BaseException | None] = asyncio.Queue()
        self._num_put = 0  # written by the engine thread alone
        self._num_read = 0  # written by the event loop alone
        self._reader: asyncio.Task[object] | None = None
        self._is_aborted = False
        self._watchdog = ReaderWatchdog(
            reader_timeout_seconds, lambda: not self._inbox.empty(), self._on_reader_timeout
        )

    async def __aiter__(self) -> AsyncIterator[Response]:
        self._reader = asyncio.current_task()
        while (batch := await self._inbox.get()) is not None:
            self._watchdog.last_read_at = self._loop.time()
            if isinstance(batch, RejectedError):
                raise batch.with_traceback(None)  # many readers share this error; it must not collect their frames
            if isinstance(batch, BaseException):
                raise batch
            self._num_read += 1
            if self._num_put - self._num_read == MAX_UNREAD_BATCHES - 1:
                self._on_space()
            for response in batch:
                if fault_injection.ARMED:
                    fault_injection.hit("client", self)
                yield response

    @property
    def has_space(self) -> bool:
        """Whether the reader keeps up."""
        return self._num_put - self._num_read < MAX_UNREAD_BATCHES

    def put(self, responses: Sequence[Response]) -> None:
        """Add a batch, from the engine thread."""
        if responses:
            self._num_put += 1
            self._put(responses)

    def end(self, error: BaseException | None = None) -> None:
        """End the iteration after the queued items, with an error if there is one; from any thread."""
        self._put(error)

    def abort(self, error: BaseException) -> None:
        """Replace all unread items by an error, and ignore later ones; on the event loop."""
        self._is_aborted = True
        self._inbox = asyncio.Queue()
        self._inbox.put_nowait(error)

    def drop_client(self) -> None:
        """Cancel the reading task, as gRPC does when the connection is lost."""
        if self._reader is not None:
            self._reader.cancel()

    def _put(self, item: Sequence[Response] | BaseException | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._deliver, item)
        except RuntimeError:  # the event loop is closed
            self._on_loop_closed()

    def _deliver(self, item: Sequence[Response] | BaseException | None) -> None:
        if self._is_aborted:
            return
        if self._inbox.empty():
            self._watchdog.last_read_at = self._loop.time()  # until now there was nothing to read
        self._inbox.put_nowait(item)
        if not self._watchdog.is_running:
            self._watchdog.start()

    def _on_reader_timeout(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._on_slow_reader()
