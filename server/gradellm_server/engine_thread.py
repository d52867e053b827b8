"""The one thread that runs the model, and the bounded queue before it.

Everything that touches the model or its tokenizer happens here. A call hands over its request; the thread reads and
checks it at once, whatever else runs, and answers it (a single answer), or gives it to the engine's scheduler (a
stream). Between two passes of the model the thread takes in what has come, drops what was cancelled and hands every
stream's news to its reader. A stream whose reader has fallen behind does not get its turn.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Generic, TypeVar

from gradellm_engine import Engine, Event, Stream

Answer = TypeVar("Answer")
Read = Callable[[Engine], Stream | Answer]  # a request to a stream, or to its only answer
Tell = Callable[[Event], Sequence[Answer]]  # an event as it goes on the wire

UNREAD_BATCHES = 64  # passes that a stream may be ahead of its reader

logger = logging.getLogger(__name__)


class QueueFullError(Exception):
    """No place is free, not even to wait."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}, which is the limit; try again later")


class ShuttingDownError(Exception):
    """The server is stopping; another one may take the request."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down; try another one, or again later")


class Job(Generic[Answer]):
    """A request on the engine thread, read from the event loop that submitted it.

    Iterate it for its answers; `cancel` it when nobody wants them any more.
    """

    def __init__(self, read: Read[Answer], tell: Tell[Answer], owner: EngineThread) -> None:
        self.read, self.tell = read, tell
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[Sequence[Answer] | BaseException | None] = asyncio.Queue()
        self._num_posted = 0  # written by the engine thread alone
        self._num_read = 0  # written by the event loop alone
        self.submitted_at = time.perf_counter()
        self.is_cancelled = False
        self.has_place = True  # running, waiting or just submitted; under the owner's lock

    async def __aiter__(self) -> AsyncIterator[Answer]:
        while (item := await self._inbox.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            self._num_read += 1
            if self._num_posted - self._num_read == UNREAD_BATCHES - 1:
                self._owner.wake()  # the stream may have been waiting for its reader
            for answer in item:
                yield answer

    def cancel(self) -> None:
        """Take the request out of the queue at once, or off the engine before its next pass."""
        self._owner.cancel(self)

    @property
    def has_turn(self) -> bool:
        """Whether its reader keeps up."""
        return self._num_posted - self._num_read < UNREAD_BATCHES

    def post(self, answers: Sequence[Answer]) -> None:
        """On the engine thread: hand answers to the reader."""
        if answers:
            self._num_posted += 1
            self._post(answers)

    def end(self, error: BaseException | None = None) -> None:
        """On the engine thread: there is nothing more, or an error."""
        self._post(error)

    def _post(self, item: Sequence[Answer] | BaseException | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, item)
        except RuntimeError:  # the event loop has ended: nobody reads any more
            self.cancel()


class EngineThread:
    """Runs requests on an engine, `max_queued` more than it runs at a time, and `max_queued_tokens` of them."""

    def __init__(self, engine: Engine, *, max_queued: int, max_queued_tokens: int) -> None:
        self._engine, self._scheduler = engine, engine.scheduler
        self.max_running = engine.scheduler.max_running
        self.max_queued = max_queued
        self.max_queued_tokens = max_queued_tokens
        self._changed = threading.Condition()
        self._submitted: deque[Job[object]] = deque()
        self._jobs: dict[Stream, Job[object]] = {}  # touched by the engine thread alone
        self._num_places_taken = 0
        self._has_cancelled = False
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="gradellm-engine", daemon=True)
        self._thread.start()

    @property
    def num_running(self) -> int:
        """Streams that have a place."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for one."""
        return self._num_places_taken - self.num_running

    def submit(self, read: Read[Answer], tell: Tell[Answer]) -> Job[Answer]:
        """Queue a request; from an event loop's thread.

        Raises:
            QueueFullError: at once, where no place is free.
            ShuttingDownError: after `stop`.
        """
        job = Job(read, tell, self)
        with self._changed:
            if self._is_stopping:
                raise ShuttingDownError
            if self._num_places_taken >= self.max_running + self.max_queued:
                raise QueueFullError(f"{self.num_running} requests run and {self.num_waiting} wait")
            self._num_places_taken += 1
            self._submitted.append(job)  # type: ignore[arg-type]
            self._changed.notify()
        return job

    def cancel(self, job: Job[Answer]) -> None:
        """See `Job.cancel`."""
        with self._changed:
            self._free_place(job)
            if not job.is_cancelled:
                job.is_cancelled = self._has_cancelled = True
                self._changed.notify()

    def wake(self) -> None:
        """Have the thread look again at who has something to do."""
        with self._changed:
            self._changed.notify()

    def stop(self, timeout_seconds: float = 30.0) -> None:
        """End the thread after its present pass; what has not finished fails with ShuttingDownError."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while self._wait():
            self._take_in()
            try:
                for _ in self._scheduler.tick(self._has_turn):
                    self._hand_out()
                    self._drop_cancelled()
                    self._take_in()
            except Exception as error:  # not a stream's own: those fail alone, inside the tick
                logger.exception("a pass failed")
                for stream in self._jobs:
                    stream.fail(error)
            self._hand_out()
            self._drop_cancelled()
        with self._changed:
            left = [*self._submitted, *self._jobs.values()]
            self._submitted.clear()
        for stream in list(self._jobs):
            self._forget(stream)
        for job in left:
            job.end(ShuttingDownError())

    def _wait(self) -> bool:
        """Until there is something to do; False when it is time to stop."""
        with self._changed:
            while not self._is_stopping:
                if self._submitted or self._has_cancelled or self._scheduler.has_work(self._has_turn):
                    return True
                self._changed.wait()
        return False

    def _has_turn(self, stream: Stream) -> bool:
        job = self._jobs.get(stream)  # None for a generation that somebody else runs on the engine
        return job is not None and job.has_turn

    def _take_in(self) -> None:
        """Read and check what has been submitted; it costs little beside a pass of the model."""
        while True:
            with self._changed:
                if not self._submitted:
                    return
                job = self._submitted.popleft()
            stream: Stream | None = None
            try:
                if not job.is_cancelled:
                    stream = self._admitted(job)
            except Exception as error:  # belongs to this request alone: its reader raises it
                job.end(error)
            if stream is None:
                self._free_place(job)
            else:
                self._jobs[stream] = job
                stream.charge("queue", time.perf_counter() - job.submitted_at)  # for the pass before it was read
                self._scheduler.submit(stream)
                self._tell(stream, job)

    def _admitted(self, job: Job[object]) -> Stream | None:
        """The request's stream, if it is one and there is room in the queue; a single answer is given here."""
        answer = job.read(self._engine)
        if not isinstance(answer, Stream):
            job.post([answer])
            job.end()
            return None
        waiting = self._scheduler.waiting
        num_tokens = sum(stream.num_places for stream in waiting)
        if waiting and num_tokens + answer.num_places > self.max_queued_tokens:
            answer.close()
            raise QueueFullError(f"{len(waiting)} requests of {num_tokens} tokens wait for memory")
        return answer

    def _hand_out(self) -> None:
        for stream, job in list(self._jobs.items()):
            self._tell(stream, job)

    def _tell(self, stream: Stream, job: Job[object]) -> None:
        """A stream's news to its reader, the last ones with its end."""
        job.post([answer for event in stream.take_events() for answer in job.tell(event)])
        if stream.is_closed:
            job.end(stream.error)
            self._forget(stream)

    def _drop_cancelled(self) -> None:
        with self._changed:
            if not self._has_cancelled:
                return
            self._has_cancelled = False
            self._submitted = deque(job for job in self._submitted if not job.is_cancelled)
        for stream in [stream for stream, job in self._jobs.items() if job.is_cancelled]:
            self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        self._scheduler.cancel(stream)
        self._free_place(self._jobs.pop(stream))

    def _free_place(self, job: Job[Answer]) -> None:
        with self._changed:
            self._num_places_taken -= job.has_place
            job.has_place = False
