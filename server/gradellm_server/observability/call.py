"""A call (one RPC) and its observers."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

from google.protobuf.message import Message

from gradellm_server.observability.call_stats import CallStats
from gradellm_server.observability.trace_context import Metadata, metadata_value, trace_context

logger = logging.getLogger(__name__)

# The client's name, set by the auth interceptor: interceptors run in the task of the call.
current_client: ContextVar[str | None] = ContextVar("gradellm_client", default=None)

_ID = re.compile(r"[\w.:+/=-]{1,128}", re.ASCII)  # no characters that could break a line of the log


@dataclass
class Call:
    """One RPC.

    Attributes:
        method: its name, such as Generate.
        metadata: sent by the caller with the request.
        id: of the call in logs; the caller's own (metadata x-request-id), or a new one.
        client: name of the token's client; None if the server needs no tokens.
        trace_id: of its trace, 32 hexadecimal digits; empty if there is none.
        started_at: seconds of the monotonic clock.
        ended_at: monotonic time of its end; None until then.
        code: name of its final gRPC status; CANCELLED until it has ended.
        reason: of its error, in capitals; empty if there is none.
        num_responses: messages sent so far.
        stats: counts and times of its messages.
    """

    method: str
    metadata: Metadata = ()
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    client: str | None = None
    trace_id: str = ""
    started_at: float = field(default_factory=time.monotonic)
    ended_at: float | None = None
    code: str = "CANCELLED"
    reason: str = ""
    num_responses: int = 0
    stats: CallStats = field(default_factory=CallStats)

    @classmethod
    def start(cls, method: str, metadata: Metadata | None) -> Call:
        """A call that starts now; called in its own task."""
        metadata = metadata or ()
        call = cls(method, metadata, client=current_client.get())
        request_id = metadata_value(metadata, "x-request-id")
        if _ID.fullmatch(request_id):
            call.id = request_id
        if context := trace_context(metadata):
            call.trace_id = context.trace_id
        return call

    @property
    def seconds(self) -> float:
        """Its duration, so far if it has not ended."""
        return (time.monotonic() if self.ended_at is None else self.ended_at) - self.started_at


class CallObserver:
    """Base class of metrics, access log and tracing; its methods are called on the event loop."""

    def on_start(self, call: Call) -> None:
        """The call has been admitted; its request has not been parsed."""

    def on_request(self, call: Call, request: Message) -> None:
        """The request has been parsed."""

    def on_response(self, call: Call, response: Message) -> None:
        """A message has been sent."""

    def on_end(self, call: Call) -> None:
        """The call has ended with `code` and `reason`."""


class CallObservers:
    """Several observers, called in order. An exception of an observer harms no call, and is logged once."""

    def __init__(self, observers: Sequence[CallObserver] = ()) -> None:
        self._observers = observers
        self._failed: set[int] = set()  # indexes of observers whose failure has been logged

    def on_start(self, call: Call) -> None:
        """See `CallObserver`."""
        self._notify(lambda observer: observer.on_start(call))

    def on_request(self, call: Call, request: Message) -> None:
        """See `CallObserver`."""
        call.stats.on_request(request)
        self._notify(lambda observer: observer.on_request(call, request))

    def on_response(self, call: Call, response: Message) -> None:
        """See `CallObserver`."""
        call.num_responses += 1
        call.stats.on_response(response, time.monotonic())
        self._notify(lambda observer: observer.on_response(call, response))

    def on_end(self, call: Call) -> None:
        """See `CallObserver`."""
        call.ended_at = time.monotonic()
        self._notify(lambda observer: observer.on_end(call))

    def on_rejected(self, method: str, metadata: Metadata | None, code: str, reason: str) -> None:
        """A call was rejected before it was admitted: its start and its end at once."""
        call = Call.start(method, metadata)
        call.code, call.reason = code, reason
        self.on_start(call)
        self.on_end(call)

    def _notify(self, notify: Callable[[CallObserver], None]) -> None:
        for index, observer in enumerate(self._observers):
            try:
                notify(observer)
            except Exception:
                if index not in self._failed:
                    self._failed.add(index)
                    logger.exception(
                        "%s failed to observe a call; its further failures are not logged", type(observer).__name__
                    )
