"""The port that Prometheus scrapes: bound early, so that a taken one is known before a model is loaded.

One thread with an event loop of its own serves all connections, each for one request: no number of them makes threads,
and none keeps a place that a scrape needs. A connection lives for `CONNECTION_SECONDS` at most, whatever it sends or
reads; where `MAX_CONNECTIONS` are open, the oldest makes way for the next.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import logging
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from prometheus_client import CollectorRegistry, make_wsgi_app

from gradellm_server.addresses import resolve
from gradellm_server.settings import ListenError, split_address

CONNECTION_SECONDS = 10.0  # that a client has for sending a request and taking its answer
MAX_CONNECTIONS = 64
MAX_REQUEST_BYTES = 16 << 10  # of a request's line and headers
END_OF_HEAD = b"\r\n\r\n"

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

logger = logging.getLogger(__name__)


class MetricsPort:
    """Serves a registry over HTTP, in a thread of its own, from when it is made until it is closed.

    Attributes:
        address: host:port, with the port that was taken where 0 was asked for.
    """

    def __init__(self, listen: str, registry: CollectorRegistry) -> None:
        """Bind.

        Raises:
            ListenError: where the address is taken or is none.
        """
        host, port = split_address(listen)
        try:
            family, _, _, place = resolve(host, port)[0]
            listener = socket.create_server(place[:2], family=family, backlog=MAX_CONNECTIONS)
        except OSError as error:
            raise ListenError(
                f"cannot listen on {listen} for metrics: {error.strerror or error}; say --metrics-listen HOST:PORT, "
                "or --metrics-listen none"
            ) from error
        self.address = f"{host}:{listener.getsockname()[1]}"
        self._connections: dict[_Connection, None] = {}  # the oldest first
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gradellm-metrics", daemon=True)
        self._thread.start()
        app: App = make_wsgi_app(registry)
        serving = self._loop.create_server(lambda: _Connection(app, self._connections), sock=listener)
        self._server = asyncio.run_coroutine_threadsafe(serving, self._loop).result()

    def close(self) -> None:
        """Answer no more."""
        self._loop.call_soon_threadsafe(self._stop)
        self._thread.join()
        self._loop.close()

    def _stop(self) -> None:
        self._server.close()
        for connection in list(self._connections):
            connection.abort()
        self._loop.call_soon(self._loop.stop)  # after what the lines above have put off


class _Connection(asyncio.Protocol):
    """One request of one client."""

    def __init__(self, app: App, connections: dict[_Connection, None]) -> None:
        self._app, self._connections = app, connections
        self._head = bytearray()
        self._is_answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio's."""
        self._transport: Any = transport
        while len(self._connections) >= MAX_CONNECTIONS:
            next(iter(self._connections)).abort()
        self._connections[self] = None
        self._timer = asyncio.get_running_loop().call_later(CONNECTION_SECONDS, self.abort)

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio's."""
        self._timer.cancel()
        self._connections.pop(self, None)

    def abort(self) -> None:
        """Hang up at once."""
        self._connections.pop(self, None)
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """See asyncio's."""
        if self._is_answered:
            return
        searched = max(0, len(self._head) - len(END_OF_HEAD) + 1)
        self._head += data
        end = self._head.find(END_OF_HEAD, searched)
        if end > MAX_REQUEST_BYTES or (end < 0 and len(self._head) > MAX_REQUEST_BYTES):
            self._answer("431 Request Header Fields Too Large", [], f"at most {MAX_REQUEST_BYTES} bytes\n".encode())
        elif end >= 0:
            self._run_app(bytes(self._head[: end + len(END_OF_HEAD)]))

    def _run_app(self, head: bytes) -> None:
        try:
            environment = _environment(head)
        except (ValueError, http.client.HTTPException):
            self._answer("400 Bad Request", [], b"not a request of HTTP/1.1\n")
            return
        said: list[Any] = []
        try:
            body = b"".join(self._app(environment, lambda *status_and_headers: said.extend(status_and_headers)))
        except Exception:
            logger.exception("metrics cannot be told")
            self._answer("500 Internal Server Error", [], b"see the server's log\n")
            return
        self._answer(said[0], said[1], body)

    def _answer(self, status: str, headers: list[tuple[str, str]], body: bytes) -> None:
        self._is_answered = True
        headers = [*headers, ("Content-Length", str(len(body))), ("Connection", "close")]
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers), "", ""]
        with suppress(OSError):
            self._transport.write("\r\n".join(lines).encode("latin-1") + body)
            self._transport.close()


def _environment(head: bytes) -> dict[str, Any]:
    """What a WSGI app is told of a request.

    Raises:
        ValueError: where it is none.
        HTTPException: likewise.
    """
    line, _, rest = head.partition(b"\r\n")
    method, target, version = line.decode("latin-1").split(" ")
    if not version.startswith("HTTP/1."):
        raise ValueError(version)
    headers = http.client.parse_headers(io.BytesIO(rest))
    path, _, query = target.partition("?")
    return {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "HTTP_ACCEPT": headers.get("Accept"),
        "HTTP_ACCEPT_ENCODING": headers.get("Accept-Encoding"),
    }
