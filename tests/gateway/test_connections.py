"""Slow clients, which send nothing, send slowly or in tiny chunks, or do not read, time out and delay no other."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn

from gateway.conftest import running
from gradellm_gateway import connections
from gradellm_gateway.connections import Limits, uvicorn_config
from server.conftest import RunningServer

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BODY = json.dumps({"messages": [{"role": "user", "content": "Once"}], "max_tokens": 1}).encode()
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
QUICK = Limits(head_seconds=0.3, body_seconds=0.4, linger_seconds=0.2, unread_seconds=0.3, connections=20)


@pytest.fixture(scope="module")
def url(server: RunningServer) -> Iterator[str]:
    with running(server.address, limits=QUICK) as url:
        yield url


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def read_answer(connection: socket.socket) -> tuple[int, Any]:
    """An answer's status and its JSON, to the end of the connection; 0 where there is none."""
    received = b""
    try:
        while data := connection.recv(1 << 16):
            received += data
    except ConnectionResetError:
        pass
    head, _, body = received.partition(b"\r\n\r\n")
    return (int(head.split(b" ")[1]), json.loads(body)) if head else (0, None)


def ask(url: str) -> int:
    """The status of an ordinary request."""
    with connect(url) as connection:
        connection.sendall(WHOLE.replace(b"Host: x", b"Host: x\r\nConnection: close"))
        return read_answer(connection)[0]


def crumbs(count: int) -> bytes:
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * count


@pytest.mark.parametrize(
    ("sends", "status", "code"),
    [
        (b"", 0, None),
        (b"POST /v1/chat", 408, "request_timeout"),
        (HEAD, 408, "request_timeout"),
        (HEAD + b"Content-Length: 100\r\n\r\n", 408, "request_timeout"),
        (HEAD + b"Content-Length: 100\r\n\r\n{", 408, "request_timeout"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n", 408, "request_timeout"),
        (HEAD + b"Content-Length: 9000000\r\n\r\n{", 413, "request_too_large"),
        (crumbs(5000), 413, "request_too_large"),
        (HEAD + b"A: " + b"b" * 20_000, 431, None),
        (HEAD + b"Transfer-Encoding: rot13\r\n\r\n", 501, None),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nz\r\n", 400, None),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400, None),
    ],
)
def test_incomplete_and_invalid_requests_are_closed(
    url: str, sends: bytes, status: int, code: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradellm_gateway.request_body.DISCARD_SECONDS", 0.2)
    with connect(url) as connection:
        connection.sendall(sends)
        began = time.monotonic()
        found, received = read_answer(connection)
    assert time.monotonic() - began < 5
    assert found == status
    if status:
        assert received["error"]["code"] == code
        assert received["error"]["type"] == "invalid_request_error"
    assert ask(url) == 200


@pytest.mark.parametrize("fragment", [b"G", b"A: b\r\n"])
def test_a_head_in_drops_ends(url: str, fragment: bytes) -> None:
    with connect(url) as connection:
        if fragment != b"G":
            connection.sendall(HEAD)
        connection.settimeout(0.02)
        until = time.monotonic() + 3
        while time.monotonic() < until:
            try:
                connection.sendall(fragment)
                if b"408" in connection.recv(1000):
                    break
            except TimeoutError:
                pass
        assert time.monotonic() < until


def test_the_timeout_restarts_with_a_second_request(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(WHOLE)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert (answer.status, answer.read()[:1]) == (200, b"{")
        time.sleep(0.5)  # between two requests there is more time than for one
        connection.sendall(WHOLE)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert (answer.status, answer.read()[:1]) == (200, b"{")
        connection.sendall(b"POST /v1")
        assert read_answer(connection)[0] == 408


def test_tiny_chunks_are_refused_early(url: str) -> None:
    """A body of 600 kB as chunks of one byte is 3.6 MB; it is refused at the first thousands."""
    used = time.process_time()
    with connect(url) as connection, contextlib.suppress(OSError):
        connection.sendall(crumbs(0).replace(b"Host: x", b"Host: x\r\nConnection: close"))
        for _ in range(60):
            connection.sendall(b"1\r\n \r\n" * 10_000)
        connection.sendall(b"0\r\n\r\n")
        connection.settimeout(60)
        read_answer(connection)
    assert time.process_time() - used < 1
    assert ask(url) == 200


def test_many_that_wait_make_way(url: str) -> None:
    waiting = [connect(url) for _ in range(60)]
    try:
        for index, connection in enumerate(waiting):
            with contextlib.suppress(OSError):  # of one that has made way already
                connection.sendall((b"", b"POST /v1", HEAD + b"Content-Length: 9\r\n\r\n{")[index % 3])
        assert ask(url) == 200
        assert read_answer(waiting[0])[0] in (0, 408)
    finally:
        for connection in waiting:
            connection.close()


def serving(app: Any, limits: Limits) -> tuple[uvicorn.Server, threading.Thread, str]:
    server = uvicorn.Server(uvicorn_config(app, limits=limits, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    return server, thread, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Serves an app of the test's own."""
    servers = []

    def start(app: Any, **limits: Any) -> str:
        server, thread, url = serving(app, Limits(**limits))
        servers.append((server, thread))
        return url

    yield start
    for server, thread in servers:
        server.should_exit = server.force_exit = True
        thread.join(10)


def test_connections_in_use_are_not_evicted(serve: Callable[..., str]) -> None:
    release = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.to_thread(release.wait, 10)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})

    url = serve(app, connections=2)
    request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with connect(url) as first, connect(url) as second:
        first.sendall(request)
        second.sendall(request)
        time.sleep(0.1)
        with connect(url) as third:
            status, received = read_answer(third)
            assert status == 503
            assert received["error"]["code"] == "too_many_connections"
        release.set()
        assert [read_answer(first)[0], read_answer(second)[0]] == [200, 200]


def test_an_unread_answer_is_aborted(serve: Callable[..., str]) -> None:
    gone = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def fill() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
                await asyncio.sleep(0)

        filling = asyncio.ensure_future(fill())
        while (await receive())["type"] != "http.disconnect":
            pass
        filling.cancel()
        gone.set()

    with connect(serve(app, unread_seconds=0.3)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert gone.wait(5)


def test_a_late_timer_reads_pending_data_first(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer that is late by more than a busy loop can be has its client heard first."""
    monkeypatch.setattr(connections, "LATE_SECONDS", 0.2)
    loops: list[Any] = []
    start = connections._Connection._await

    def noted(self: Any, message: str) -> None:
        loops.append(self.loop)
        start(self, message)

    monkeypatch.setattr(connections._Connection, "_await", noted)
    with connect(url) as connection:
        connection.sendall(WHOLE[:-10])
        while not loops:
            time.sleep(0.01)
        time.sleep(0.05)
        loops[0].call_soon_threadsafe(time.sleep, 1.0)
        time.sleep(0.1)
        connection.sendall(WHOLE[-10:])
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
