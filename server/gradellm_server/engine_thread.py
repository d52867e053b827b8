"""The one thread that runs the model, and the bounded queue before it.

A call hands over its request. It is read and checked at once, whatever else runs, by a thread beside this one
(`gradellm_server.rpc.request_reader`), which answers it (a single answer) or hands on the stream that it is. Between
two passes of the model the engine thread gives what has come to the engine's scheduler, drops what was cancelled and
hands every stream's news to its reader. A stream whose reader has fallen behind does not get its turn, and after a
while ends.

The thread's heartbeat is the moment at which it last was between two passes, or waited for something to do. When it
ends unasked, by whatever error, every stream ends with EngineFailedError, and nothing more is taken.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Generic, TypeVar

from gradellm_engine import Engine, Event, GroupLostError, Request
from gradellm_server import fault_injection
from gradellm_server.retry_after import RetryAfterEstimator, endings, seconds_until_room
from gradellm_server.rpc.request_reader import NotWantedError, ReadingThreads

Answer = TypeVar("Answer")
Read = Callable[[Engine], Request | Answer]  # a request to a stream, or to its only answer
Tell = Callable[[Event], Sequence[Answer]]  # an event as it goes on the wire

UNREAD_BATCHES = 64  # passes that a stream may be ahead of its reader
READER_TIMEOUT_SECONDS = 60.0
RESTART_SECONDS = 5.0  # until somebody answers again at the address of a server that ends, if nothing better is known
IDLE_BEAT_SECONDS = 0.25
LATE_SECONDS = 1.0  # by which a look at a reader may come late on a busy machine
TELL_SECONDS = 0.1  # for the end of a stream to be on its way, before what runs it is ended

logger = logging.getLogger(__name__)


class RejectedError(Exception):
    """A request that is not taken, or not finished, for no fault of its own.

    Attributes:
        retry_seconds: when another try makes sense, as far as can be told.
    """

    def __init__(self, message: str, retry_seconds: float) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class QueueFullError(RejectedError):
    """No place is free, not even to wait."""

    def __init__(self, what: str, retry_seconds: float = 1.0) -> None:
        super().__init__(f"{what}, which is the limit", retry_seconds)


class ShuttingDownError(RejectedError):
    """The server is stopping; another one may take the request."""

    def __init__(self, retry_seconds: float = RESTART_SECONDS) -> None:
        super().__init__("the server is shutting down; try another one, or again later", retry_seconds)


class EngineFailedError(RejectedError):
    """The thread that runs the model has ended, or does not come back from a pass."""

    def __init__(self, what: str, retry_seconds: float = RESTART_SECONDS) -> None:
        super().__init__(f"the engine {what}; the server has to be restarted", retry_seconds)


class ReadingFailedError(Exception):
    """Native code failed while a request was read; others are not concerned."""

    def __init__(self) -> None:
        super().__init__("the request could not be read: the model's tokenizer fails on it")


class SlowConsumerError(Exception):
    """A client has not read for too long."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"nothing of the stream was read for {seconds:g} s, which is the limit; read it as it comes")


class Job(Generic[Answer]):
    """A request on the engine thread, read from the event loop that submitted it.

    Iterate it for its answers; `cancel` it when nobody wants them any more.

    Attributes:
        when_abandoned: called on the event loop when the reader has not read for too long, before what iterates is
            cancelled: it is blocked in handing over an answer and cannot tell the client itself.
    """

    def __init__(self, read: Read[Answer], tell: Tell[Answer], owner: EngineThread) -> None:
        self.read, self.tell = read, tell
        self.first: list[Answer] = []  # answers that were made while it was read
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[Sequence[Answer] | BaseException | None] = asyncio.Queue()
        self._num_posted = 0  # written by the engine thread alone
        self._num_read = 0  # written by the event loop alone
        self._read_at = self._loop.time()
        self._reader: asyncio.Task[object] | None = None
        self._is_watched = self._is_abandoned = False
        self.when_abandoned: Callable[[SlowConsumerError], None] = lambda error: None
        self.submitted_at = time.perf_counter()
        self.is_cancelled = False

    async def __aiter__(self) -> AsyncIterator[Answer]:
        self._reader = asyncio.current_task()
        while (item := await self._inbox.get()) is not None:
            self._read_at = self._loop.time()
            if isinstance(item, RejectedError):
                raise item.with_traceback(None)  # it may be many readers' error, and must not collect their frames
            if isinstance(item, BaseException):
                raise item
            self._num_read += 1
            if self._num_posted - self._num_read == UNREAD_BATCHES - 1:
                self._owner.wake()  # the stream may have been waiting for its reader
            for answer in item:
                if fault_injection.ARMED:
                    fault_injection.hit("client", self)
                yield answer

    def cancel(self) -> None:
        """Take the request out of the queue at once, or off the engine before its next pass."""
        self._owner.cancel(self)

    def drop_client(self) -> None:
        """End what iterates, as the loss of the connection does."""
        if self._reader is not None:
            self._reader.cancel()

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
        """There is nothing more, or an error; from any thread."""
        self._post(error)

    def _post(self, item: Sequence[Answer] | BaseException | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._deliver, item)
        except RuntimeError:  # the event loop has ended: nobody reads any more
            self.cancel()

    def _deliver(self, item: Sequence[Answer] | BaseException | None) -> None:
        if self._is_abandoned:
            return
        if self._inbox.empty():
            self._read_at = self._loop.time()  # until now there was nothing to read
        self._inbox.put_nowait(item)
        if not self._is_watched:
            self._is_watched = True
            self._watch_after(self._owner.reader_timeout_seconds)

    def _watch_after(self, seconds: float) -> None:
        self._loop.call_later(seconds, self._watch, self._loop.time() + seconds)

    def _watch(self, due: float) -> None:
        """See whether the reader reads; there is at most one look to come."""
        if self._loop.time() - due > LATE_SECONDS:
            self._read_at = self._loop.time()  # this process was stopped (SIGSTOP, a paused VM): nobody could read
        left = self._owner.reader_timeout_seconds - (self._loop.time() - self._read_at)
        self._is_watched = not self._inbox.empty() and left > 0
        if self._is_watched:
            self._watch_after(left)
        elif not self._inbox.empty() and self._reader is not None and not self._reader.done():
            self._abandon()

    def _abandon(self) -> None:
        self._is_abandoned = True
        self.cancel()
        error = SlowConsumerError(self._owner.reader_timeout_seconds)
        self._inbox = asyncio.Queue()
        self._inbox.put_nowait(error)
        self.when_abandoned(error)
        self._loop.call_later(TELL_SECONDS, self.drop_client)


class EngineThread:
    """Runs requests on an engine, `max_queued` more than it runs at a time, and `max_queued_tokens` of them.

    Attributes:
        reader_timeout_seconds: how long a stream may have something to read and not be read.
        restart_seconds: how long it takes until somebody answers again where the server ends; told to those who are
            refused because it does.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_queued: int,
        max_queued_tokens: int,
        reader_timeout_seconds: float = READER_TIMEOUT_SECONDS,
    ) -> None:
        self._engine, self._scheduler = engine, engine.scheduler
        self.max_running = engine.scheduler.max_running
        self.max_queued = max_queued
        self.max_queued_tokens = max_queued_tokens
        self.reader_timeout_seconds = reader_timeout_seconds
        self.restart_seconds = RESTART_SECONDS
        self._changed = threading.Condition()
        self._arrived: deque[tuple[Job[object], Request]] = deque()  # read, and not seen by the engine thread yet
        self._jobs: dict[Request, Job[object]] = {}  # touched by the engine thread alone
        self._placed: dict[Job[object], None] = {}  # all that have a place, in the order of their coming
        self._has_cancelled = False
        self._is_draining = self._is_stopping = False
        self._failure: EngineFailedError | None = None
        self._has_ended = False
        self._ended_by: RejectedError = ShuttingDownError()
        self._come_back = RetryAfterEstimator()
        self._beat_at = time.monotonic()
        engine.scheduler.before_pass = _meet_pass
        self._reading = ReadingThreads[Job[object]](self._read, lambda job: not job.is_cancelled)
        self._thread = threading.Thread(target=self._run, name="gradellm-engine", daemon=True)
        self._thread.start()

    @property
    def num_running(self) -> int:
        """Streams that have a place."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for one."""
        return max(0, len(self._placed) - self.num_running)

    @property
    def num_placed(self) -> int:
        """Requests that run or wait."""
        return len(self._placed)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive() and self._failure is None

    @property
    def is_running(self) -> bool:
        """Whether the thread has not ended; it may be in a pass that does not."""
        return self._thread.is_alive()

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the thread last was between two passes, or waited for something to do.

        Or, where that is longer, since the request was taken up that is read now.
        """
        return max(time.monotonic() - self._beat_at, self._reading.oldest_seconds)

    def submit(self, read: Read[Answer], tell: Tell[Answer], num_bytes: int = 0) -> Job[Answer]:
        """Queue a request of so many bytes; from an event loop's thread, which never waits for a pass.

        Raises:
            QueueFullError: at once, where no place is free.
            ShuttingDownError: after `drain` or `stop`.
            EngineFailedError: where the thread has ended, or is given up.
        """
        job = Job(read, tell, self)
        with self._changed:
            if self._failure is not None:
                raise self._failure.with_traceback(None)  # it is raised again and again, and must not collect frames
            if self._is_stopping or self._is_draining:
                raise ShuttingDownError(self.restart_seconds)
            self._check_room()
            self._placed[job] = None  # type: ignore[index]
        self._reading.submit(job, num_bytes)  # type: ignore[arg-type]
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

    def drain(self) -> None:
        """From now on, refuse what comes; what was taken goes on."""
        with self._changed:
            self._is_draining = True

    def give_up(self, error: EngineFailedError) -> None:
        """The thread does not come back from a pass: end all streams, and refuse what comes until `recover`."""
        with self._changed:
            self._failure = error
        self.end_all(error)

    def recover(self) -> bool:
        """The thread has come back after all, unless it has ended; whether it has."""
        with self._changed:
            if self._thread.is_alive() and not self._has_ended:
                self._failure = None
            return self._failure is None

    def end_all(self, error: RejectedError) -> None:
        """End all that runs or waits, whatever the thread does; from any thread."""
        with self._changed:
            left = list(self._placed)
        for job in left:
            job.end(error)
            job.cancel()

    def stop(self, timeout_seconds: float = 30.0) -> bool:
        """End the thread after its present pass; what has not finished fails with ShuttingDownError.

        Returns whether it has ended in time.
        """
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._reading.stop()
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _check_room(self) -> None:
        """See that a place is free, by what is known without the engine.

        Raises:
            QueueFullError: saying the limit, and when to come back.
        """
        if len(self._placed) >= self.max_running + self.max_queued:
            raise QueueFullError(
                f"{self.num_running} requests run and {self.num_waiting} wait", self._come_back.seconds(self._endings())
            )
        waiting = list(self._scheduler.waiting)
        num_tokens = sum(stream.max_num_tokens for stream in waiting)
        if waiting and num_tokens >= self.max_queued_tokens:
            raise self._too_many_tokens(waiting, num_tokens, 1)

    def _too_many_tokens(self, waiting: Sequence[Request], num_tokens: int, more: int) -> QueueFullError:
        left = self._scheduler.seconds_left
        seconds = seconds_until_room(
            [left(stream) for stream in list(self._scheduler.running)],
            [(left(stream), stream.max_num_tokens) for stream in waiting],
            num_tokens + more - self.max_queued_tokens,
        )
        return QueueFullError(
            f"{len(waiting)} requests of {num_tokens} tokens wait for memory, and {self.max_queued_tokens} may", seconds
        )

    def _endings(self) -> list[float]:
        """When places become free, in seconds from now."""
        running, waiting = list(self._scheduler.running), list(self._scheduler.waiting)
        left = self._scheduler.seconds_left
        return endings([left(stream) for stream in running], [left(stream) for stream in waiting])

    def _run(self) -> None:
        error: RejectedError = ShuttingDownError(self.restart_seconds)
        try:
            self._work()
        except BaseException as failed:  # nobody above would tell it
            logger.critical("the engine thread has ended", exc_info=failed)
            error = EngineFailedError("has failed", self.restart_seconds)
            with self._changed:
                self._failure = error
        with self._changed:
            self._has_ended = True
            self._ended_by = error
            left = list(self._placed)
            self._arrived.clear()
        for job in left:
            job.end(error)
        for stream in list(self._jobs):
            self._forget(stream)
        for job in left:
            self._free(job)

    def _work(self) -> None:
        while self._wait():
            self._take_in()
            try:
                if fault_injection.ARMED:
                    fault_injection.hit("engine")
                for _ in self._scheduler.step(self._has_turn):
                    self._between_passes()
            except GroupLostError:
                raise
            except Exception as error:  # not a stream's own: those fail alone, inside the tick
                logger.exception("a pass failed")
                for stream in self._jobs:
                    stream.fail(error)
            self._hand_out()
            self._drop_cancelled()

    def _between_passes(self) -> None:
        self._beat_at = time.monotonic()
        self._hand_out()
        self._drop_cancelled()
        self._take_in()
        self._beat_at = time.monotonic()

    def _wait(self) -> bool:
        """Until there is something to do; False when it is time to stop."""
        until = time.monotonic() + IDLE_BEAT_SECONDS
        with self._changed:
            while not self._is_stopping:
                self._beat_at = time.monotonic()
                if self._arrived or self._has_cancelled or self._scheduler.has_work(self._has_turn):
                    return True
                if self._scheduler.needs_heartbeat and time.monotonic() >= until:
                    return True
                self._changed.wait(IDLE_BEAT_SECONDS)
        return False

    def _has_turn(self, stream: Request) -> bool:
        job = self._jobs.get(stream)  # None for a generation that somebody else runs on the engine
        return job is not None and job.has_turn

    def _read(self, job: Job[object]) -> None:
        """On a reading thread: a request to its only answer, or to a stream for the engine thread."""
        stream: Request | None = None
        try:
            if not job.is_cancelled:
                stream = self._read_stream(job)
        except NotWantedError:
            pass  # its caller has been answered, or has gone
        except Exception as error:  # belongs to this request alone: its reader raises it
            job.end(error)
        except BaseException as error:  # no `Exception`, as a panic of native code; its words may quote the request
            logger.error("a request could not be read: %s", type(error).__name__)
            job.end(ReadingFailedError())
        with self._changed:
            if stream is not None and not self._has_ended and not job.is_cancelled:
                self._arrived.append((job, stream))
                self._changed.notify()
                return
            has_ended = self._has_ended
        if stream is not None:
            stream.close()
            if has_ended:
                job.end(self._ended_by)
        self._free(job)

    def _read_stream(self, job: Job[object]) -> Request | None:
        """The request's stream, if it is one, with what it tells first; a single answer is given here."""
        if fault_injection.ARMED:
            fault_injection.hit("tokenizer", job)
        answer = job.read(self._engine)
        if not isinstance(answer, Request):
            job.post([answer])
            job.end()
            return None
        job.first = [told for event in answer.take_events() for told in job.tell(event)]
        return answer

    def _take_in(self) -> None:
        """Give the scheduler what has been read."""
        while True:
            with self._changed:
                if not self._arrived:
                    return
                job, stream = self._arrived.popleft()
            try:
                self._check_tokens(stream)
                self._scheduler.submit(stream)
            except Exception as error:  # belongs to this request alone: its reader raises it
                stream.close()
                job.end(error)
                self._free(job)
                continue
            self._jobs[stream] = job
            stream.add_time("queue", time.perf_counter() - job.submitted_at)  # for the pass before it was taken in
            job.post(job.first)
            job.first = []
            self._tell(stream, job)

    def _check_tokens(self, stream: Request) -> None:
        """See that there is room in the queue for a stream's tokens."""
        waiting = list(self._scheduler.waiting)
        num_tokens = sum(its.max_num_tokens for its in waiting)
        if waiting and num_tokens + stream.max_num_tokens > self.max_queued_tokens:
            raise self._too_many_tokens(waiting, num_tokens, stream.max_num_tokens)

    def _hand_out(self) -> None:
        for stream, job in list(self._jobs.items()):
            self._tell(stream, job)

    def _tell(self, stream: Request, job: Job[object]) -> None:
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
            gone = [stream for job, stream in self._arrived if job.is_cancelled]
            self._arrived = deque(item for item in self._arrived if not item[0].is_cancelled)
        for stream in gone:
            stream.close()
        for stream in [stream for stream, job in self._jobs.items() if job.is_cancelled]:
            self._forget(stream)

    def _forget(self, stream: Request) -> None:
        self._scheduler.cancel(stream)
        self._free(self._jobs.pop(stream))

    def _free(self, job: Job[object]) -> None:
        with self._changed:
            self._free_place(job)

    def _free_place(self, job: Job[Answer]) -> None:
        """Under the lock."""
        self._placed.pop(job, None)  # type: ignore[arg-type]


def _meet_pass(streams: Sequence[Request]) -> None:
    """Before each pass of the model."""
    if fault_injection.ARMED:
        fault_injection.hit("pass", streams)
