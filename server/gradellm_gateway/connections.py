"""HTTP connections of the gateway: uvicorn's, with timeouts and limits against slow clients.

uvicorn waits without limit for a request and reads it in chunks of any size. Here reading a request's head and body
has a timeout, bodies in very many tiny chunks are refused, a response that the client does not read is aborted, and at
the connection limit a new connection evicts the one that has waited longest without a complete request. Refusals are
OpenAI's error object, as those of the routes.
"""

from __future__ import annotations

import asyncio
import http
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gradellm_gateway.errors import error_object

MAX_HEAD_BYTES = 16 << 10
LATE_SECONDS = 1.0  # a timer this late means that the process was suspended: the client gets as long again


@dataclass(frozen=True)
class Limits:
    """Limits of connections.

    Attributes:
        head_seconds: timeout for a request's head, from the start of the connection or of the request.
        body_seconds: timeout for a request's body.
        idle_seconds: keep-alive timeout between two requests.
        unread_seconds: timeout for a client to read pending response bytes.
        linger_seconds: how long data after a refusal is read and discarded, so that the client sees the refusal.
        connections: maximum number of open connections.
        max_chunks: number of body chunks whose size is not checked.
        chunk_bytes: minimum average size of chunks where a body has more of them.
    """

    head_seconds: float = 10.0
    body_seconds: float = 60.0
    idle_seconds: int = 15
    unread_seconds: float = 60.0
    linger_seconds: float = 2.0
    connections: int = 512
    max_chunks: int = 4000
    chunk_bytes: int = 32


def uvicorn_config(app: Any, *, limits: Limits | None = None, **options: Any) -> uvicorn.Config:  # noqa: ANN401 (uvicorn's)
    """A uvicorn configuration with these limits; `options` are those of `uvicorn.Config`."""
    limits = limits or Limits()
    connection: Any = partial(_Connection, limits=limits)
    return uvicorn.Config(
        app,
        http=connection,
        ws="none",
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        timeout_keep_alive=limits.idle_seconds,
        server_header=False,
        **options,
    )


class _LimitedParser(h11.Connection):
    """An HTTP/1.1 parser that refuses bodies in too many tiny chunks.

    Attributes:
        refusal: the error that ended parsing.
    """

    def __init__(self, limits: Limits) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self._limits = limits
        self._num_chunks = self._num_bytes = 0
        self.refusal: h11.RemoteProtocolError | None = None

    def next_event(self) -> Any:  # noqa: ANN401 (h11's)
        """See h11's."""
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                self._num_chunks = self._num_bytes = 0
            elif isinstance(event, h11.Data):
                self._num_chunks += 1
                self._num_bytes += len(event.data)
                self._check_chunks()
        except h11.RemoteProtocolError as error:
            self.refusal = error
            raise
        return event

    def _check_chunks(self) -> None:
        limits = self._limits
        if self._num_chunks > limits.max_chunks and self._num_bytes < limits.chunk_bytes * self._num_chunks:
            raise h11.RemoteProtocolError(
                f"the request's body has more than {limits.max_chunks:,} chunks of less than {limits.chunk_bytes} "
                "bytes on average; send larger chunks",
                error_status_hint=413,
            )


class _Timer:
    """Calls a function after a delay, and again delays it if the process was suspended: unread bytes may be pending."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, callback: Callable[[], object]) -> None:
        self._loop, self._callback = loop, callback
        self._start(seconds)

    def cancel(self) -> None:
        """Do not call the function."""
        self._handle.cancel()

    def _start(self, seconds: float) -> None:
        self._due = self._loop.time() + seconds
        self._handle = self._loop.call_at(self._due, self._fire)

    def _fire(self) -> None:
        if self._loop.time() - self._due > LATE_SECONDS:
            self._start(LATE_SECONDS)
        else:
            self._callback()


class _Connection(H11Protocol):
    """A client's connection."""

    conn: _LimitedParser

    def __init__(self, *args: Any, limits: Limits, **kwargs: Any) -> None:  # noqa: ANN401 (uvicorn's)
        super().__init__(*args, **kwargs)
        self.conn = _LimitedParser(limits)
        self._limits = limits
        self._awaited = ""  # from the client: "head", "body", or "rest" (of a body that was answered already)
        self._awaited_since = self.loop.time()
        self._deadline: _Timer | None = None
        self._unread: _Timer | None = None
        self._is_refused = False  # incoming data is discarded

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See uvicorn's."""
        has_room = self._evict_idle()
        super().connection_made(transport)
        if has_room:
            self._await("head")
        else:
            self._refuse(503, f"{self._limits.connections} connections are open, which is the limit", retry=True)

    def connection_lost(self, exc: Exception | None) -> None:
        """See uvicorn's."""
        self._set_deadline(None)
        self._set_unread(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See uvicorn's."""
        if self._is_refused:
            return
        super().data_received(data)
        self._update_deadline(has_started=True)

    def on_response_complete(self) -> None:
        """See uvicorn's."""
        super().on_response_complete()
        self._update_deadline(has_started=bool(self.conn.trailing_data[0]))

    def send_400_response(self, msg: str) -> None:
        """Refuse a malformed request; see uvicorn's."""
        error = self.conn.refusal
        self._refuse(400 if error is None else error.error_status_hint, msg if error is None else str(error))

    def shutdown(self) -> None:
        """See uvicorn's."""
        if self._is_refused:
            self.transport.close()
        else:
            super().shutdown()

    def pause_writing(self) -> None:
        """See uvicorn's."""
        super().pause_writing()
        self._set_unread(_Timer(self.loop, self._limits.unread_seconds, self.transport.abort))

    def resume_writing(self) -> None:
        """See uvicorn's."""
        super().resume_writing()
        self._set_unread(None)

    # --- deadlines ---------------------------------------------------------------------------------------------------

    def _update_deadline(self, *, has_started: bool) -> None:
        """Set the deadline for the missing part of a request. `has_started`: whether a head has started."""
        state = self.conn.their_state
        if self._is_refused or self.transport.is_closing():
            return
        if state is h11.SEND_BODY:
            self._await("rest" if self.conn.our_state is h11.DONE else "body")
        elif state is h11.IDLE and has_started:
            self._await("head")
        else:  # the request is complete, or uvicorn waits for the next one
            self._await("")

    def _await(self, phase: str) -> None:
        if phase == self._awaited:
            return
        self._awaited, self._awaited_since = phase, self.loop.time()
        limits = self._limits
        timeouts = {"head": limits.head_seconds, "body": limits.body_seconds, "rest": limits.linger_seconds}
        seconds = timeouts.get(phase)
        self._set_deadline(None if seconds is None else _Timer(self.loop, seconds, partial(self._on_deadline, seconds)))

    def _on_deadline(self, seconds: float) -> None:
        if self._awaited == "rest":
            self.transport.abort()
        elif self._awaited == "head" and not self.conn.trailing_data[0]:
            self.transport.close()  # no request was started, so there is none to answer
        else:
            self._refuse(408, f"the {self._awaited} of the request was not complete after {seconds:g} s, the limit")

    def _set_deadline(self, timer: _Timer | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = timer

    def _set_unread(self, timer: _Timer | None) -> None:
        if self._unread is not None:
            self._unread.cancel()
        self._unread = timer

    # --- refusals ---------------------------------------------------------------------------------------------------

    def _refuse(self, status: int, message: str, *, retry: bool = False) -> None:
        """Send an error response, unless a response has started, and close the connection."""
        self._await("")
        self._unset_keepalive_if_required()
        self._is_refused = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        self.logger.info("refused a request with %d: %s", status, message)
        code = {408: "request_timeout", 413: "request_too_large", 503: "too_many_connections"}.get(status)
        kind = "server_error" if status == 503 else "invalid_request_error"
        body = json.dumps(error_object(message, kind, code=code)).encode()
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            *([("Retry-After", "1")] if retry else []),
        ]
        response = h11.Response(status_code=status, headers=headers, reason=http.HTTPStatus(status).phrase)
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._set_deadline(_Timer(self.loop, self._limits.linger_seconds, self.transport.abort))

    def _evict_idle(self) -> bool:
        """Close the connections that have waited longest until there is room for a new one; whether there is."""
        while len(self.connections) >= self._limits.connections:
            evictable = [other for other in self.connections if isinstance(other, _Connection) and other._is_evictable]
            if not evictable:
                return False
            oldest = min(evictable, key=lambda other: other._awaited_since)
            self.connections.discard(oldest)
            oldest.transport.abort()
        return True

    @property
    def _is_evictable(self) -> bool:
        return self._is_refused or bool(self._awaited) or self.cycle is None or self.cycle.response_complete
