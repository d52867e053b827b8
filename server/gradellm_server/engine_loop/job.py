"""A request's handle: submitted on an event loop, run by the engine thread, read on the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Generic, Protocol, TypeVar

from gradellm_engine import Engine, Event, GivenLogprobs, Request
from gradellm_server.engine_loop.errors import SlowConsumerError
from gradellm_server.engine_loop.follow_feed import FollowFeed
from gradellm_server.engine_loop.response_queue import ResponseQueue

Response = TypeVar("Response")
ReadRequest = Callable[[Engine], Request | Response]  # the engine's request, or the response of a unary call
ConvertEvent = Callable[[Event], Sequence[Response]]  # an engine event to its wire messages

ABORT_SECONDS = 0.1  # for the status of an aborted call to be sent, before its handler is cancelled


class JobRunner(Protocol):
    """What runs jobs: the engine thread."""

    reader_timeout_seconds: float

    def cancel(self, job: Job[Response]) -> None:
        """Take a job off the queue or the engine."""

    def wake(self) -> None:
        """Look again for requests that can run."""


class Job(Generic[Response]):
    """A request on the engine thread. Iterate it for its responses, and `cancel` it at the end of its call.

    Attributes:
        read: turns the message into the engine's request, on a reading thread.
        convert: turns the engine's events into responses.
        first_responses: responses that were made while the request was read, before it is scheduled.
        feed: what its caller sends while it runs, for a followed request; None for all others.
        responses: the queue that its caller reads.
        on_slow_reader: called on the event loop when the client has not read for too long, before the handler is
            cancelled. The handler itself is blocked in a write and cannot send the status.
        submitted_at: seconds of `time.perf_counter`.
        is_cancelled: set by the runner.
    """

    def __init__(
        self,
        read: ReadRequest[Response],
        convert: ConvertEvent[Response],
        runner: JobRunner,
        feed: FollowFeed | None = None,
    ) -> None:
        self.read, self.convert, self.feed = read, convert, feed
        self._runner = runner
        self.first_responses: list[Response] = []
        self.responses: ResponseQueue[Response] = ResponseQueue(
            runner.reader_timeout_seconds,
            on_space=runner.wake,
            on_slow_reader=self._abort_slow_reader,
            on_loop_closed=self.cancel,
        )
        self.on_slow_reader: Callable[[SlowConsumerError], None] = lambda error: None
        self.submitted_at = time.perf_counter()
        self.is_cancelled = False

    def __aiter__(self) -> AsyncIterator[Response]:
        return aiter(self.responses)

    def append(self, ids: Sequence[int], logprobs: Sequence[GivenLogprobs]) -> None:
        """Add tokens to a followed request."""
        if self.feed is not None:
            self.feed.append(ids, logprobs)
            self._runner.wake()

    def finish(self) -> None:
        """No more tokens come to a followed request."""
        if self.feed is not None:
            self.feed.finish()
            self._runner.wake()

    def cancel(self) -> None:
        """Take the request off the queue at once, or off the engine before its next pass."""
        self._runner.cancel(self)

    def _abort_slow_reader(self) -> None:
        self.cancel()
        error = SlowConsumerError(self._runner.reader_timeout_seconds)
        self.responses.abort(error)
        self.on_slow_reader(error)
        asyncio.get_running_loop().call_later(ABORT_SECONDS, self.responses.drop_client)
