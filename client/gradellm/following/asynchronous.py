"""The counterpart of `gradellm.following.synchronous` for asyncio."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from gradellm.errors import GradellmError
from gradellm.explanation.explanation import Collector, Explanation
from gradellm.following.stream import FollowedStream
from gradellm.following.written import written_tokens

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from types import TracebackType
    from typing import Self

    from gradellm.models import Event
    from gradellm.transport.calls import Call
    from gradellm.v1 import explainer_pb2 as pb

__all__ = ["AsyncFollowing"]


class AsyncFollowing:
    """`gradellm.Following` for asyncio: a running call of `AsyncClient.follow`.

    Events arrive in a task of its own, whether or not they are read. Leaving the context cancels a call that has not
    ended.
    """

    def __init__(
        self,
        stream_events: Callable[[FollowedStream, Callable[[], AsyncIterator[pb.FollowRequest]]], AsyncIterator[Event]],
        call: Call[Event | None],
    ) -> None:
        self._stream = FollowedStream(call)
        self._changed = asyncio.Event()  # set and replaced at each change
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._collector = Collector()
        self._error: GradellmError | None = None
        self._task = asyncio.get_running_loop().create_task(self._run(stream_events))

    async def append(
        self,
        ids: Sequence[int],
        logprobs: Sequence[float | None] | None = None,
        top_logprobs: Sequence[Sequence[float]] | None = None,
    ) -> None:
        """Add tokens that the other engine wrote; see `Following.append`."""
        tokens = written_tokens(ids, logprobs, top_logprobs)
        self._raise_error()
        self._stream.append(tokens)
        self._notify()

    async def finish(self) -> None:
        """No more tokens come; see `Following.finish`."""
        self._stream.finish()
        self._notify()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield events as they come. Raises the error of a call that fails."""
        while (event := await self._events.get()) is not None:
            yield event
        self._events.put_nowait(None)  # for another iteration
        self._raise_error()

    def poll(self) -> list[Event]:
        """Return the events that have come and were not iterated; see `Following.poll`."""
        events: list[Event] = []
        while not self._events.empty():
            if (event := self._events.get_nowait()) is None:
                self._events.put_nowait(None)
                if not events:
                    self._raise_error()
                break
            events.append(event)
        return events

    async def result(self) -> Explanation:
        """Finish, wait for the end, and return the completion with its attribution; see `Following.result`."""
        await self.finish()
        await asyncio.wait([self._task])
        self._raise_error()
        return self._collector.explanation()

    async def aclose(self) -> None:
        """Cancel the call, if it runs."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait([self._task])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self, stream_events: Callable[..., AsyncIterator[Event]]) -> None:
        """Receive events, in the call's own task."""
        try:
            async for event in stream_events(self._stream, self._messages):
                self._collector.add(event)
                self._events.put_nowait(event)
        except GradellmError as error:
            self._error = error
        finally:
            self._stream.end_call()
            self._notify()
            self._events.put_nowait(None)

    def _messages(self) -> AsyncIterator[pb.FollowRequest]:
        """The messages of a new call."""
        messages = self._stream.begin_call()
        self._notify()  # so that the messages of the last call end
        return self._waiting(messages)

    async def _waiting(self, messages: Any) -> AsyncIterator[pb.FollowRequest]:  # noqa: ANN401 (CallMessages)
        while True:
            changed = self._changed
            if (message := messages.take()) is not None:
                yield message
            elif messages.is_over:
                return
            else:
                await changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error
