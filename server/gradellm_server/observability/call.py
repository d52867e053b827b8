"""One RPC on its way through the server, and who watches it."""

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
from gradellm_server.observability.metadata import Metadata, value_of
from gradellm_server.observability.trace_context import trace_context

logger = logging.getLogger(__name__)

# Who calls, as the gate found it (interceptors run in the task of the call).
current_client: ContextVar[str | None] = ContextVar("gradellm_client", default=None)

_ID = re.compile(r"[\w.:+/=-]{1,128}", re.ASCII)  # nothing that could break a line of a log


@dataclass
class Call:
    """One RPC.

    Attributes:
        method: its name, such as Generate.
        metadata: what the caller sent beside the request.
        id: of this request, in logs; the caller's own (metadata x-request-id), or a new one.
        client: the name of the token that it came with; None where the server asks for none.
        trace_id: of the trace that it belongs to, 32 hexadecimal digits; empty where there is none.
        began: seconds of the monotonic clock.
        ended: likewise; None until it has ended.
        code: the gRPC status that it ended with, by name; CANCELLED until it has ended.
        reason: of the error, in capitals; empty where there is none.
        num_answers: messages sent so far.
        facts: what its messages tell of it.
    """

    method: str
    metadata: Metadata = ()
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    client: str | None = None
    trace_id: str = ""
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    code: str = "CANCELLED"
    reason: str = ""
    num_answers: int = 0
    facts: CallStats = field(default_factory=CallStats)

    @classmethod
    def arriving(cls, method: str, metadata: Metadata | None) -> Call:
        """A call that begins now, in its own task."""
        metadata = metadata or ()
        call = cls(method, metadata, client=current_client.get())
        own_id = value_of(metadata, "x-request-id")
        if _ID.fullmatch(own_id):
            call.id = own_id
        if context := trace_context(metadata):
            call.trace_id = context.trace_id
        return call

    @property
    def seconds(self) -> float:
        """How long it took, or has taken so far."""
        return (time.monotonic() if self.ended is None else self.ended) - self.began


class CallObserver:
    """Who is told of calls, on the event loop: metrics, the log, traces. What one does not define, it does not hear."""

    def began(self, call: Call) -> None:
        """It has been let in; nothing is known of its request yet."""

    def read(self, call: Call, request: Message) -> None:
        """Its request."""

    def answered(self, call: Call, answer: Message) -> None:
        """A message has been sent."""

    def ended(self, call: Call) -> None:
        """It is over, whatever the reason: `code` says it."""


class Watchers:
    """Tells several watchers, in their order. One that fails harms no call and is logged once."""

    def __init__(self, watchers: Sequence[CallObserver] = ()) -> None:
        self._watchers = watchers
        self._failed: set[int] = set()  # that have been logged

    def began(self, call: Call) -> None:
        """See `CallObserver`."""
        self._tell(lambda watcher: watcher.began(call))

    def read(self, call: Call, request: Message) -> None:
        """See `CallObserver`."""
        call.facts.read(request)
        self._tell(lambda watcher: watcher.read(call, request))

    def answered(self, call: Call, answer: Message) -> None:
        """See `CallObserver`."""
        call.num_answers += 1
        call.facts.answered(answer, time.monotonic())
        self._tell(lambda watcher: watcher.answered(call, answer))

    def ended(self, call: Call) -> None:
        """See `CallObserver`."""
        call.ended = time.monotonic()
        self._tell(lambda watcher: watcher.ended(call))

    def turned_away(self, method: str, metadata: Metadata | None, code: str, reason: str) -> None:
        """A call was refused before it could begin: who asks, or what for, is not let in."""
        call = Call.arriving(method, metadata)
        call.code, call.reason = code, reason
        self.began(call)
        self.ended(call)

    def _tell(self, what: Callable[[CallObserver], None]) -> None:
        for index, watcher in enumerate(self._watchers):
            try:
                what(watcher)
            except Exception:
                if index not in self._failed:
                    self._failed.add(index)
                    logger.exception(
                        "%s failed to watch a call; further failures of it are not logged", type(watcher).__name__
                    )
