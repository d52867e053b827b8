"""The engine thread: runs the model, between a bounded queue of requests and the queues of their responses.

A call submits its message. A reading thread (`request_reader`) validates and tokenizes it at once, whatever the engine
does, and either answers it (a unary call) or passes on the engine's request. Between two passes of the model the engine
thread gives new requests to the scheduler, drops cancelled ones and delivers events to their readers. A request whose
reader falls behind is not scheduled; after the reader timeout it is aborted.

The heartbeat is the time at which the engine thread was last between two passes, or idle. If the thread ends because of
an error, every request ends with EngineFailedError and new ones are rejected.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TypeVar

from gradellm_engine import Engine, FollowedRequest, GroupLostError, Request
from gradellm_server import fault_injection
from gradellm_server.engine_loop.admission import AdmissionControl
from gradellm_server.engine_loop.errors import (
    RESTART_SECONDS,
    EngineFailedError,
    ReadingFailedError,
    RejectedError,
    ShuttingDownError,
)
from gradellm_server.engine_loop.follow_feed import FollowFeed
from gradellm_server.engine_loop.job import ConvertEvent, Job, ReadRequest
from gradellm_server.engine_loop.request_reader import ReadCancelledError, RequestReader

Response = TypeVar("Response")

READER_TIMEOUT_SECONDS = 60.0
IDLE_HEARTBEAT_SECONDS = 0.25
COMMIT_MEMORY_SECONDS = 0.2  # without work, after which memory for the next requests is committed
RETURN_MEMORY_SECONDS = 30.0  # without work, after which unused memory is given back

logger = logging.getLogger(__name__)


class EngineThread:
    """Runs requests on an engine; `max_queued` may wait, with `max_queued_tokens` in all.

    Attributes:
        reader_timeout_seconds: how long a response may be unread before its request is aborted.
        restart_seconds: how long a restart takes; the retry delay of requests that are rejected because the server
            stops.
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
        self.max_running, self.max_followed = engine.scheduler.max_running, engine.scheduler.max_followed
        self.max_queued = max_queued
        self.max_queued_tokens = max_queued_tokens
        self.reader_timeout_seconds = reader_timeout_seconds
        self.restart_seconds = RESTART_SECONDS
        self._admission = AdmissionControl(engine, max_queued=max_queued, max_queued_tokens=max_queued_tokens)
        self._changed = threading.Condition()
        self._unfinished: dict[Job[object], None] = {}  # running, queued or being read, in order of arrival
        self._ready: deque[tuple[Job[object], Request]] = deque()  # read, and not given to the scheduler yet
        self._scheduled: dict[Request, Job[object]] = {}  # touched by the engine thread alone
        self._has_cancelled = False
        self._is_draining = self._is_stopping = False
        self._failure: EngineFailedError | None = None
        self._has_ended = False
        self._end_error: RejectedError = ShuttingDownError()
        self._heartbeat_at = time.monotonic()
        engine.scheduler.before_pass = _inject_pass_fault
        self._reader = RequestReader[Job[object]](self._read_job, lambda job: not job.is_cancelled)
        self._thread = threading.Thread(target=self._run, name="gradellm-engine", daemon=True)
        self._thread.start()

    @property
    def num_running(self) -> int:
        """Requests that the scheduler runs."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Requests that are queued or being read."""
        return max(0, len(self._unfinished) - self.num_running)

    @property
    def num_followed(self) -> int:
        """Followed requests that have KV slots."""
        return sum(request.is_followed for request in tuple(self._scheduler.running))

    @property
    def num_unread_tokens(self) -> int:
        """Tokens that have come to followed requests, and are not explained yet."""
        return sum(request.num_unread for request in tuple(self._scheduled) if isinstance(request, FollowedRequest))

    @property
    def num_unfinished(self) -> int:
        """Requests that run or wait."""
        return len(self._unfinished)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs and is not marked as failed."""
        return self._thread.is_alive() and self._failure is None

    @property
    def is_running(self) -> bool:
        """Whether the thread has not ended; it may be stalled in a pass."""
        return self._thread.is_alive()

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the engine thread was last between two passes, or idle.

        Or, if that is longer, seconds for which a request has been read.
        """
        return max(time.monotonic() - self._heartbeat_at, self._reader.oldest_seconds)

    # From any thread -------------------------------------------------------------------------------------------------

    def submit(
        self,
        read: ReadRequest[Response],
        convert: ConvertEvent[Response],
        num_bytes: int = 0,
        feed: FollowFeed | None = None,
    ) -> Job[Response]:
        """Queue a message of `num_bytes`; from an event loop's thread, without waiting for a pass.

        `feed` is what comes to a followed request.

        Raises:
            QueueFullError: at once, if a limit of the queue is reached.
            ShuttingDownError: after `drain` or `stop`.
            EngineFailedError: if the thread has ended, or is marked as failed.
        """
        job = Job(read, convert, self, feed)
        with self._changed:
            if self._failure is not None:
                raise self._failure.with_traceback(None)  # raised many times; it must not collect frames
            if self._is_stopping or self._is_draining:
                raise ShuttingDownError(self.restart_seconds)
            is_followed = feed is not None
            alike = sum((other.feed is not None) == is_followed for other in self._unfinished)
            self._admission.check_queue(alike, is_followed=is_followed)
            self._unfinished[job] = None  # type: ignore[index]
        self._reader.submit(job, num_bytes)  # type: ignore[arg-type]
        return job

    def cancel(self, job: Job[Response]) -> None:
        """Take a job off the queue at once, or off the engine before its next pass."""
        with self._changed:
            self._unfinished.pop(job, None)  # type: ignore[arg-type]
            if not job.is_cancelled:
                job.is_cancelled = self._has_cancelled = True
                self._changed.notify()

    def wake(self) -> None:
        """Have the thread look again for requests that can run."""
        with self._changed:
            self._changed.notify()

    def drain(self) -> None:
        """Reject new requests from now on; unfinished ones continue."""
        with self._changed:
            self._is_draining = True

    def mark_failed(self, error: EngineFailedError) -> None:
        """End all requests with an error and reject new ones, until `recover`; for a thread stalled in a pass."""
        with self._changed:
            self._failure = error
        self.end_all(error)

    def recover(self) -> bool:
        """Take requests again, unless the thread has ended; returns whether it takes them."""
        with self._changed:
            if self._thread.is_alive() and not self._has_ended:
                self._failure = None
            return self._failure is None

    def end_all(self, error: RejectedError) -> None:
        """End all unfinished requests with an error, whatever the thread does."""
        with self._changed:
            unfinished = list(self._unfinished)
        for job in unfinished:
            job.responses.end(error)
            job.cancel()

    def stop(self, timeout_seconds: float = 30.0) -> bool:
        """End the thread after its present pass; unfinished requests fail with ShuttingDownError.

        Returns whether the thread ended within the timeout.
        """
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._reader.stop()
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    # On a reading thread ---------------------------------------------------------------------------------------------

    def _read_job(self, job: Job[object]) -> None:
        """Read a job's message, and pass its request to the engine thread if it is a stream."""
        request: Request | None = None
        try:
            if not job.is_cancelled:
                request = self._read_request(job)
        except ReadCancelledError:
            pass
        except Exception as error:  # the request's own error, which its caller raises
            job.responses.end(error)
        except BaseException as error:  # a panic of native code; its message may quote the request
            logger.error("Reading a request failed in native code: %s", type(error).__name__)
            job.responses.end(ReadingFailedError())
        with self._changed:
            if request is not None and not self._has_ended and not job.is_cancelled:
                self._ready.append((job, request))
                self._changed.notify()
                return
            has_ended = self._has_ended
        if request is not None:
            request.close()
            if has_ended:
                job.responses.end(self._end_error)
        self._remove(job)

    def _read_request(self, job: Job[object]) -> Request | None:
        """The engine's request, with its first responses in the job; None for a unary call, which is answered here."""
        if fault_injection.ARMED:
            fault_injection.hit("tokenizer", job)
        result = job.read(self._engine)
        if not isinstance(result, Request):
            job.responses.put([result])
            job.responses.end()
            return None
        job.first_responses = [response for event in result.take_events() for response in job.convert(event)]
        return result

    # On the engine thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        error: RejectedError = ShuttingDownError(self.restart_seconds)
        try:
            self._loop()
        except BaseException as failure:  # a thread's own error would otherwise go unnoticed
            logger.critical("Engine thread failed", exc_info=failure)
            error = EngineFailedError("has failed", self.restart_seconds)
            with self._changed:
                self._failure = error
        with self._changed:
            self._has_ended = True
            self._end_error = error
            unfinished = list(self._unfinished)
            self._ready.clear()
        for job in unfinished:
            job.responses.end(error)
        for request in list(self._scheduled):
            self._finish(request)
        for job in unfinished:
            self._remove(job)

    def _loop(self) -> None:
        while self._wait():
            self._accept_jobs()
            self._apply_feeds()
            try:
                if fault_injection.ARMED:
                    fault_injection.hit("engine")
                for _ in self._scheduler.step(self._can_run):
                    self._between_passes()
            except GroupLostError:
                raise
            except Exception as error:  # of the whole pass: a request's own error ends it inside the scheduler's step
                logger.exception("A pass of the model failed; its requests end")
                for request in self._scheduled:
                    request.fail(error)
            self._flush_events()
            self._drop_cancelled()

    def _between_passes(self) -> None:
        self._heartbeat_at = time.monotonic()
        self._flush_events()
        self._drop_cancelled()
        self._accept_jobs()
        self._heartbeat_at = time.monotonic()

    def _wait(self) -> bool:
        """Wait for work; False when the thread is to stop. Memory is prepared meanwhile, and later given back."""
        began = time.monotonic()
        is_committed = has_returned_memory = False
        while True:
            with self._changed:
                self._heartbeat_at = now = time.monotonic()
                if self._is_stopping:
                    return False
                feed_seconds = self._feed_seconds
                if self._ready or self._has_cancelled or feed_seconds == 0 or self._scheduler.has_work(self._can_run):
                    return True
                if self._scheduler.needs_heartbeat and now >= began + IDLE_HEARTBEAT_SECONDS:
                    return True
                commits = not is_committed and now >= began + COMMIT_MEMORY_SECONDS
                returns = not has_returned_memory and now >= began + RETURN_MEMORY_SECONDS
                if not (commits or returns):
                    self._changed.wait(min(IDLE_HEARTBEAT_SECONDS, feed_seconds))
                    continue
            if commits:  # a little, before it looks for work again
                is_committed = not self._engine.commit_memory()
            else:
                self._engine.return_unused_memory()
                has_returned_memory = True

    def _can_run(self, request: Request) -> bool:
        job = self._scheduled.get(request)  # None for a generation that is run directly on the engine
        return job is not None and job.responses.has_space

    def _accept_jobs(self) -> None:
        """Give the scheduler the requests that have been read."""
        while True:
            with self._changed:
                if not self._ready:
                    return
                job, request = self._ready.popleft()
            try:
                self._admission.check_tokens(request)
                self._scheduler.submit(request)
            except Exception as error:  # the request's own error, which its caller raises
                request.close()
                job.responses.end(error)
                self._remove(job)
                continue
            self._scheduled[request] = job
            request.add_time("queue", time.perf_counter() - job.submitted_at)  # it waited for the pass before this
            job.responses.put(job.first_responses)
            job.first_responses = []
            self._deliver(request, job)

    @property
    def _feed_seconds(self) -> float:
        """Seconds until something has to be applied to a followed request; infinity for nothing."""
        feeds = [job.feed for job in self._scheduled.values() if job.feed is not None]
        return min((seconds for feed in feeds if (seconds := feed.due_seconds) is not None), default=math.inf)

    def _apply_feeds(self) -> None:
        """Give the scheduler what has come to followed requests."""
        for request, job in list(self._scheduled.items()):
            if job.feed is None or job.feed.due_seconds != 0 or not isinstance(request, FollowedRequest):
                continue
            try:
                job.feed.apply(self._scheduler, request)
            except Exception as error:  # the request's own error, which its caller raises
                request.fail(error)
            self._deliver(request, job)

    def _flush_events(self) -> None:
        for request, job in list(self._scheduled.items()):
            self._deliver(request, job)

    def _deliver(self, request: Request, job: Job[object]) -> None:
        """Put a request's new events in its queue, and its end if it is closed."""
        job.responses.put([response for event in request.take_events() for response in job.convert(event)])
        if request.is_closed:
            job.responses.end(request.error)
            self._finish(request)

    def _drop_cancelled(self) -> None:
        with self._changed:
            if not self._has_cancelled:
                return
            self._has_cancelled = False
            cancelled = [request for job, request in self._ready if job.is_cancelled]
            self._ready = deque(item for item in self._ready if not item[0].is_cancelled)
        for request in cancelled:
            request.close()
        for request in [request for request, job in self._scheduled.items() if job.is_cancelled]:
            self._finish(request)

    def _finish(self, request: Request) -> None:
        self._scheduler.cancel(request)
        self._remove(self._scheduled.pop(request))

    def _remove(self, job: Job[object]) -> None:
        with self._changed:
            self._unfinished.pop(job, None)


def _inject_pass_fault(requests: Sequence[Request]) -> None:
    if fault_injection.ARMED:
        fault_injection.hit("pass", requests)
