"""A call that explains a completion while another engine writes it."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any

from gradellm.errors import GradellmError
from gradellm.explanation.explanation import Collector, Explanation
from gradellm.following.stream import FollowedStream
from gradellm.following.written import written_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from gradellm.models import Event
    from gradellm.transport.calls import Call
    from gradellm.v1 import explainer_pb2 as pb

__all__ = ["Following"]

_CLOSE_SECONDS = 5.0


class Following:
    """A running call of `Client.follow`: append tokens as they come, finish, and iterate it for the events.

        with client.follow(messages=[("user", "Where is the key?")]) as following:
            for chunk in other_engine:
                following.append(chunk.token_ids, chunk.logprobs)
            explanation = following.result()

    Events arrive on a thread of its own, whether or not they are read. Iteration waits for them, in any thread, and
    ends after `finished`. Leaving the context cancels a call that has not ended.
    """

    def __init__(
        self,
        stream_events: Callable[[FollowedStream, Callable[[], Iterator[pb.FollowRequest]]], Iterator[Event]],
        call: Call[Event | None],
    ) -> None:
        """`stream_events` runs the calls: it takes the stream, and what makes the messages of a call."""
        self._stream = FollowedStream(call)
        self._changed = threading.Condition()
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._collector = Collector()
        self._error: GradellmError | None = None
        self._is_closed = self._has_ended = False
        self._thread = threading.Thread(target=self._run, args=(stream_events,), name="gradellm-follow", daemon=True)
        self._thread.start()

    def append(
        self,
        ids: Sequence[int],
        logprobs: Sequence[float | None] | None = None,
        top_logprobs: Sequence[Sequence[float]] | None = None,
    ) -> None:
        """Add tokens that the other engine wrote, without waiting for anything.

        `logprobs` are its log-probabilities of these tokens, natural logarithm, before temperature, top_k and top_p;
        None for one that is not known. `top_logprobs` are, for each token, those of the most probable tokens, with or
        without its own; they tell another model in fewer tokens.

        Raises the error of a call that has failed, and InvalidRequestError after `finish`.
        """
        tokens = written_tokens(ids, logprobs, top_logprobs)
        with self._changed:
            self._raise_error()
            self._stream.append(tokens)
            self._changed.notify_all()

    def finish(self) -> None:
        """No more tokens come. The rest is explained, and iteration ends with `finished`."""
        with self._changed:
            self._stream.finish()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Event]:
        """Yield events as they come. Raises the error of a call that fails."""
        while (event := self._events.get()) is not None:
            yield event
        self._events.put(None)  # for another iteration
        self._raise_error()

    def poll(self) -> list[Event]:
        """Return the events that have come and were not iterated, without waiting. Raises the error of the call."""
        events: list[Event] = []
        while not self._events.empty():
            if (event := self._events.get()) is None:
                self._events.put(None)
                if not events:
                    self._raise_error()
                break
            events.append(event)
        return events

    def result(self) -> Explanation:
        """Finish, wait for the end, and return the completion with its attribution.

        Raises the error of a call that fails.
        """
        self.finish()
        self._thread.join()
        self._raise_error()
        return self._collector.explanation()

    def close(self) -> None:
        """Cancel the call, if it runs."""
        with self._changed:
            self._is_closed = True
            self._stream.end_call()
            self._changed.notify_all()
        if self._stream.running is not None:
            self._stream.running.cancel()
        self._thread.join(_CLOSE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, stream_events: Callable[..., Iterator[Event]]) -> None:
        """Receive events, on the call's own thread."""
        try:
            for event in stream_events(self._stream, self._messages):
                self._collector.add(event)
                self._events.put(event)
        except GradellmError as error:
            if not self._is_closed:
                self._error = error
        finally:
            with self._changed:
                self._stream.end_call()
                self._changed.notify_all()
            self._events.put(None)

    def _messages(self) -> Iterator[pb.FollowRequest]:
        """The messages of a new call, on a thread of gRPC, which waits for them."""
        with self._changed:
            messages = self._stream.begin_call()
            self._changed.notify_all()  # so that the messages of the last call end
        return self._waiting(messages)

    def _waiting(self, messages: Any) -> Iterator[pb.FollowRequest]:  # noqa: ANN401 (CallMessages)
        while True:
            with self._changed:
                while (message := messages.take()) is None and not messages.is_over and not self._is_closed:
                    self._changed.wait()
            if message is None:
                return
            yield message

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error
