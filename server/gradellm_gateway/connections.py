"""The gateway's HTTP connections: uvicorn's, with limits for what a client may leave unsaid, unsent and unread.

uvicorn waits for a request for as long as its connection lasts, and reads it in whatever pieces it comes. Here a head
and a body have their time; pieces so small that reading them costs more than they hold are refused; an answer that
nobody takes is given up; and where as many connections are open as may be, the one that has kept its place longest
without a whole request makes way for the next. Refusals are OpenAI's error object, as the routes' are.
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
LATE_SECONDS = 1.0  # a timer that fires later than this ran in a process that was stopped: the client gets so long more


@dataclass(frozen=True)
class Limits:
    """What a client may take.

    Attributes:
        head_seconds: for the head of a request, from its connection's or its own beginning.
        body_seconds: for its body.
        idle_seconds: between two requests of a connection.
        unread_seconds: for which an answer may wait to be read.
        linger_seconds: for which what comes after a refusal is read and thrown away, so that the client sees it.
        connections: open at the same time.
        pieces: of a body that may be as small as they like.
        piece_bytes: that pieces have on the average where there are more of them.
    """

    head_seconds: float = 10.0
    body_seconds: float = 60.0
    idle_seconds: int = 15
    unread_seconds: float = 60.0
    linger_seconds: float = 2.0
    connections: int = 512
    pieces: int = 4000
    piece_bytes: int = 32


def uvicorn_config(app: Any, *, limits: Limits | None = None, **options: Any) -> uvicorn.Config:  # noqa: ANN401 (uvicorn's)
    """How uvicorn serves an app within limits. `options` are `uvicorn.Config`'s own."""
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


class _Parser(h11.Connection):
    """Reads requests; refuses bodies in too many small pieces.

    Attributes:
        refusal: why it reads no more.
    """

    def __init__(self, limits: Limits) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self._limits = limits
        self._num_pieces = self._num_bytes = 0
        self.refusal: h11.RemoteProtocolError | None = None

    def next_event(self) -> Any:  # noqa: ANN401 (h11's)
        """See h11's."""
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                self._num_pieces = self._num_bytes = 0
            elif isinstance(event, h11.Data):
                self._num_pieces += 1
                self._num_bytes += len(event.data)
                self._check_pieces()
        except h11.RemoteProtocolError as error:
            self.refusal = error
            raise
        return event

    def _check_pieces(self) -> None:
        limits = self._limits
        if self._num_pieces > limits.pieces and self._num_bytes < limits.piece_bytes * self._num_pieces:
            raise h11.RemoteProtocolError(
                f"the request's body comes in more than {limits.pieces:,} pieces of less than {limits.piece_bytes} "
                "bytes; send larger ones",
                error_status_hint=413,
            )


class _Timer:
    """Does something later; once more later where the process was stopped meanwhile, since bytes may lie ready then."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, act: Callable[[], object]) -> None:
        self._loop, self._act = loop, act
        self._start(seconds)

    def cancel(self) -> None:
        """Do nothing after all."""
        self._handle.cancel()

    def _start(self, seconds: float) -> None:
        self._due = self._loop.time() + seconds
        self._handle = self._loop.call_at(self._due, self._fire)

    def _fire(self) -> None:
        if self._loop.time() - self._due > LATE_SECONDS:
            self._start(LATE_SECONDS)
        else:
            self._act()


class _Connection(H11Protocol):
    """One client's connection."""

    conn: _Parser

    def __init__(self, *args: Any, limits: Limits, **kwargs: Any) -> None:  # noqa: ANN401 (uvicorn's)
        super().__init__(*args, **kwargs)
        self.conn = _Parser(limits)
        self._limits = limits
        self._waits_for = ""  # what the client owes: a head, a body, the rest of a body that was answered already
        self._waits_since = self.loop.time()
        self._deadline: _Timer | None = None
        self._unread: _Timer | None = None
        self._is_over = False  # what comes is thrown away

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See uvicorn's."""
        has_room = self._make_room()
        super().connection_made(transport)
        if has_room:
            self._wait_for("head")
        else:
            self._refuse(503, f"{self._limits.connections} connections are open, which is the limit", retry=True)

    def connection_lost(self, exc: Exception | None) -> None:
        """See uvicorn's."""
        self._set_deadline(None)
        self._set_unread(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See uvicorn's."""
        if self._is_over:
            return
        super().data_received(data)
        self._look(has_begun=True)

    def on_response_complete(self) -> None:
        """See uvicorn's."""
        super().on_response_complete()
        self._look(has_begun=bool(self.conn.trailing_data[0]))

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request: see uvicorn's."""
        error = self.conn.refusal
        self._refuse(400 if error is None else error.error_status_hint, msg if error is None else str(error))

    def shutdown(self) -> None:
        """See uvicorn's."""
        if self._is_over:
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

    # --- what the client owes ---------------------------------------------------------------------------------------

    def _look(self, *, has_begun: bool) -> None:
        """See what of a request is still to come. `has_begun`: whether some of a head has."""
        state = self.conn.their_state
        if self._is_over or self.transport.is_closing():
            return
        if state is h11.SEND_BODY:
            self._wait_for("rest" if self.conn.our_state is h11.DONE else "body")
        elif state is h11.IDLE and has_begun:
            self._wait_for("head")
        else:  # it is answered, or uvicorn waits for the next one
            self._wait_for("")

    def _wait_for(self, what: str) -> None:
        if what == self._waits_for:
            return
        self._waits_for, self._waits_since = what, self.loop.time()
        limits = self._limits
        times = {"head": limits.head_seconds, "body": limits.body_seconds, "rest": limits.linger_seconds}
        seconds = times.get(what)
        self._set_deadline(None if seconds is None else _Timer(self.loop, seconds, partial(self._give_up, seconds)))

    def _give_up(self, seconds: float) -> None:
        if self._waits_for == "rest":
            self.transport.abort()
        elif self._waits_for == "head" and not self.conn.trailing_data[0]:
            self.transport.close()  # nothing was asked, and so nothing is answered
        else:
            self._refuse(408, f"the {self._waits_for} of the request had not come after {seconds:g} s, the limit")

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
        """Answer with an error where there is no answer yet, and hang up."""
        self._wait_for("")
        self._unset_keepalive_if_required()
        self._is_over = True
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

    def _make_room(self) -> bool:
        """Hang up on who has kept a place without a whole request, where there is no other; whether there is one."""
        while len(self.connections) >= self._limits.connections:
            waiting = [one for one in self.connections if isinstance(one, _Connection) and one._may_go]
            if not waiting:
                return False
            first = min(waiting, key=lambda one: one._waits_since)
            self.connections.discard(first)
            first.transport.abort()
        return True

    @property
    def _may_go(self) -> bool:
        return self._is_over or bool(self._waits_for) or self.cycle is None or self.cycle.response_complete
