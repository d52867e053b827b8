"""The one thread that runs the model, and the bounded queue before it.

A job is an iterator that does one unit of work (a prefill chunk, a decode step) each time it is asked, and yields what
came of it. Running jobs take turns, a unit each, so that none waits for another's end; a job that was cancelled, or
whose reader has fallen behind, does not get its turn. Everything that touches the model or its tokenizer happens here.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Generic, TypeVar

from gradellm_engine import Engine

Event = TypeVar("Event")
Work = Callable[[Engine, float], Iterator[Sequence[Event]]]  # is told the seconds that it waited

UNREAD_BATCHES = 64  # units of work a job may be ahead of its reader

logger = logging.getLogger(__name__)


class QueueFullError(Exception):
    """No place is free, not even to wait."""

    def __init__(self, num_running: int, num_waiting: int) -> None:
        super().__init__(f"{num_running} requests run and {num_waiting} wait, which is the limit; try again later")


class ShuttingDownError(Exception):
    """The server is stopping; another one may take the request."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down; try another one, or again later")


class Job(Generic[Event]):
    """A request's work on the engine thread, read from the event loop that submitted it.

    Iterate it for its events; `cancel` it when nobody wants them any more.
    """

    def __init__(self, work: Work[Event], owner: EngineThread) -> None:
        self._work = work
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[Sequence[Event] | BaseException | None] = asyncio.Queue()
        self._submitted = time.monotonic()
        self._iterator: Iterator[Sequence[Event]] | None = None
        self._num_posted = 0  # written by the engine thread alone
        self._num_read = 0  # written by the event loop alone
        self.cancelled = False

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (item := await self._inbox.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            self._num_read += 1
            if self._num_posted - self._num_read == UNREAD_BATCHES - 1:
                self._owner.wake()  # the job may have been waiting for its reader
            for event in item:
                yield event

    def cancel(self) -> None:
        """Take the job out of the queue at once, or off the engine before its next unit of work."""
        self._owner.cancel(self)

    @property
    def has_turn(self) -> bool:
        """Whether there is anything to do for it."""
        return self.cancelled or self._num_posted - self._num_read < UNREAD_BATCHES

    def advance(self, engine: Engine) -> bool:
        """On the engine thread: do one unit of work; whether there is more."""
        try:
            if self._iterator is None:
                self._iterator = self._work(engine, time.monotonic() - self._submitted)
            batch = next(self._iterator, None)
        except Exception as error:  # belongs to this job alone: its reader raises it, the engine goes on
            self.post(error)
            return False
        if batch:
            self._num_posted += 1
            self.post(batch)
        elif batch is None:
            self.post(None)
        return batch is not None

    def close(self) -> None:
        """On the engine thread: free what the work holds."""
        close = getattr(self._iterator, "close", None)
        self._iterator = None
        if close is not None:
            close()

    def post(self, item: Sequence[Event] | BaseException | None) -> None:
        """Hand something to the reader."""
        try:
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, item)
        except RuntimeError:  # the event loop has ended: nobody reads any more
            self.cancelled = True


class EngineThread:
    """Runs jobs on an engine, at most `max_running` in turn and `max_queued` in wait."""

    def __init__(self, engine: Engine, *, max_running: int, max_queued: int) -> None:
        self._engine = engine
        self.max_running = max_running
        self.max_queued = max_queued
        self._changed = threading.Condition()
        self._waiting: deque[Job[object]] = deque()
        self._running: list[Job[object]] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="gradellm-engine", daemon=True)
        self._thread.start()

    @property
    def num_running(self) -> int:
        """Jobs that have a place."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Jobs that wait for one."""
        return len(self._waiting)

    def submit(self, work: Work[Event]) -> Job[Event]:
        """Queue work; from an event loop's thread.

        Raises:
            QueueFullError: at once, where no place is free.
            ShuttingDownError: after `stop`.
        """
        job = Job(work, self)
        with self._changed:
            if self._stopping:
                raise ShuttingDownError
            # A job that finds a place free starts at the engine's next turn; it does not count as waiting.
            if len(self._waiting) + len(self._running) >= self.max_running + self.max_queued:
                raise QueueFullError(len(self._running), len(self._waiting))
            self._waiting.append(job)  # type: ignore[arg-type]
            self._changed.notify()
        return job

    def cancel(self, job: Job[Event]) -> None:
        """See `Job.cancel`."""
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)  # type: ignore[arg-type]
            self._changed.notify()

    def wake(self) -> None:
        """Have the thread look again at who has something to do."""
        with self._changed:
            self._changed.notify()

    def stop(self, timeout_seconds: float = 30.0) -> None:
        """End the thread after its present unit of work; what has not finished fails with ShuttingDownError."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while turn := self._next_turn():
            for job in turn:
                if job.cancelled or not job.advance(self._engine):
                    job.close()
                    with self._changed:
                        self._running.remove(job)
        with self._changed:
            left = [*self._running, *self._waiting]
            self._running.clear()
            self._waiting.clear()
        for job in left:
            job.close()
            job.post(ShuttingDownError())

    def _next_turn(self) -> list[Job[object]]:
        """The running jobs with something to do; waits until there is one. Empty when it is time to stop."""
        with self._changed:
            while not self._stopping:
                while self._waiting and len(self._running) < self.max_running:
                    self._running.append(self._waiting.popleft())
                if turn := [job for job in self._running if job.has_turn]:
                    return turn
                self._changed.wait()
        return []
