"""The state of one followed completion over one or more calls: what is sent, and what has arrived. Without I/O.

All tokens that were appended are kept, so that a call that breaks off is continued on another server: tokens that have
their attributions become its context, the others are sent again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradellm.errors import InvalidRequestError
from gradellm.following.written import append_request
from gradellm.transport.resumable_stream import ResumableStream
from gradellm.v1 import explainer_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.message import Message

    from gradellm.following.written import WrittenToken
    from gradellm.models import Event
    from gradellm.transport.calls import Call

__all__ = ["FollowedStream"]


class CallMessages:
    """The messages of one call, in order."""

    def __init__(self, stream: FollowedStream, start: pb.FollowStart) -> None:
        self._stream, self._start = stream, start
        self._num_sent = len(start.completion_ids)
        self._has_begun = False
        self.is_over = False
        """Whether the last message has been taken, or another call has begun."""

    def take(self) -> pb.FollowRequest | None:
        """Return the next message; None where there is none now."""
        if self.is_over:
            return None
        if not self._has_begun:
            self._has_begun = True
            return pb.FollowRequest(start=self._start)
        written = self._stream.written
        if len(written) > self._num_sent:
            first, self._num_sent = self._num_sent, len(written)
            return append_request(written[first:])
        if self._stream.is_finished:
            self.is_over = True
            return pb.FollowRequest(finish=pb.FollowFinish())
        return None


class FollowedStream(ResumableStream):
    """One stream of events for the tokens that are appended."""

    def __init__(self, call: Call[Event | None]) -> None:
        super().__init__(call)
        self.written: list[WrittenToken] = []
        """All tokens so far."""
        self.is_finished = False
        """Whether there are no more."""
        self._totals: list[tuple[int, pb.AgreementTotal]] = []
        """Agreements so far, each with the number of tokens that it is of."""
        self._messages: CallMessages | None = None

    def append(self, tokens: Sequence[WrittenToken]) -> None:
        """Add tokens. Raises InvalidRequestError after `finish`."""
        if self.is_finished:
            raise InvalidRequestError("append() comes after finish(): a finished completion has no more tokens")
        self.written += tokens

    def finish(self) -> None:
        """No more tokens come."""
        self.is_finished = True

    def begin_call(self) -> CallMessages:
        """Return the messages of the next call; those of the last one are over."""
        self.end_call()
        start: Any = self.request
        self._messages = CallMessages(self, start)
        return self._messages

    def end_call(self) -> None:
        """The messages of the running call are over."""
        if self._messages is not None:
            self._messages.is_over = True

    def take(self, response: Any, target: str) -> Event | None:  # noqa: ANN401 (ResumableStream's)
        """See `ResumableStream`."""
        event = super().take(response, target)
        if event is not None and event.agreement is not None:
            self._totals.append((self._next_token, response.agreement.total))
        return event

    def _resumed(self) -> Message:
        resumed = super()._resumed()
        if not isinstance(resumed, pb.FollowStart):
            raise TypeError(f"the first message of Follow is FollowStart, not {type(resumed).__name__}")
        num_context = min(self._next_attribution, len(self.written))
        resumed.completion_ids[:] = [token.id for token in self.written[:num_context]]
        known = [total for count, total in self._totals if count <= num_context]
        if known:
            resumed.agreement.CopyFrom(known[-1])
        if self._started is not None and self._started.provenance.sampling is not None:
            resumed.max_new_tokens = self._started.provenance.sampling.max_new_tokens
        return resumed
