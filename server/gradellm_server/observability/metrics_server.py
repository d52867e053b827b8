"""The HTTP server of the metrics, for Prometheus; bound before the model is loaded, so that a used port fails early.

One thread with its own event loop serves all connections, one request each, so that many connections neither start
threads nor block a scrape. A connection lives for `CONNECTION_SECONDS` at most; beyond `MAX_CONNECTIONS` the oldest is
closed.
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

CONNECTION_SECONDS = 10.0  # for a client to send a request and read the response
MAX_CONNECTIONS = 64
MAX_REQUEST_BYTES = 16 << 10  # of a request's line and headers
END_OF_HEAD = b"\r\n\r\n"

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

logger = logging.getLogger(__name__)


class MetricsServer:
    """Serves a registry over HTTP on a thread of its own, from its creation until `close`.

    Attributes:
        address: host:port, with the port that was bound for port 0.
    """

    def __init__(self, listen: str, registry: CollectorRegistry) -> None:
        """Bind.

        Raises:
            ListenError: if the address is in use or does not exist.
        """
        host, port = split_address(listen)
        try:
            family, _, _, sockaddr = resolve(host, port)[0]
            listener = socket.create_server(sockaddr[:2], family=family, backlog=MAX_CONNECTIONS)
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
        """Stop serving."""
        self._loop.call_soon_threadsafe(self._stop)
        self._thread.join()
        self._loop.close()

    def _stop(self) -> None:
        self._server.close()
        for connection in list(self._connections):
            connection.abort()
        self._loop.call_soon(self._loop.stop)  # after the callbacks that the lines above have scheduled


class _Connection(asyncio.Protocol):
    """One request of one client."""

    def __init__(self, app: App, connections: dict[_Connection, None]) -> None:
        self._app, self._connections = app, connections
        self._head = bytearray()
        self._has_responded = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport: Any = transport
        while len(self._connections) >= MAX_CONNECTIONS:
            next(iter(self._connections)).abort()
        self._connections[self] = None
        self._timer = asyncio.get_running_loop().call_later(CONNECTION_SECONDS, self.abort)

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._timer.cancel()
        self._connections.pop(self, None)

    def abort(self) -> None:
        """Close the connection at once."""
        self._connections.pop(self, None)
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._has_responded:
            return
        searched = max(0, len(self._head) - len(END_OF_HEAD) + 1)
        self._head += data
        end = self._head.find(END_OF_HEAD, searched)
        if end > MAX_REQUEST_BYTES or (end < 0 and len(self._head) > MAX_REQUEST_BYTES):
            self._respond("431 Request Header Fields Too Large", [], f"at most {MAX_REQUEST_BYTES} bytes\n".encode())
        elif end >= 0:
            self._run_app(bytes(self._head[: end + len(END_OF_HEAD)]))

    def _run_app(self, head: bytes) -> None:
        try:
            environment = _environment(head)
        except (ValueError, http.client.HTTPException):
            self._respond("400 Bad Request", [], b"not a request of HTTP/1.1\n")
            return
        status_and_headers: list[Any] = []
        try:
            body = b"".join(self._app(environment, lambda *values: status_and_headers.extend(values)))
        except Exception:
            logger.exception("Exporting the metrics failed")
            self._respond("500 Internal Server Error", [], b"see the server's log\n")
            return
        self._respond(status_and_headers[0], status_and_headers[1], body)

    def _respond(self, status: str, headers: list[tuple[str, str]], body: bytes) -> None:
        self._has_responded = True
        headers = [*headers, ("Content-Length", str(len(body))), ("Connection", "close")]
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers), "", ""]
        with suppress(OSError):
            self._transport.write("\r\n".join(lines).encode("latin-1") + body)
            self._transport.close()


def _environment(head: bytes) -> dict[str, Any]:
    """The WSGI environment of a request.

    Raises:
        ValueError: if its first line is malformed.
        HTTPException: if its headers are.
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
