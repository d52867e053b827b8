"""The metrics server: bound early, closed with the server, and robust against hostile clients."""

from __future__ import annotations

import gzip
import http.client
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from gradellm.v1 import explainer_pb2 as pb
from gradellm_server.__main__ import main
from gradellm_server.observability import metrics_server
from gradellm_server.observability.metrics_server import MetricsServer
from gradellm_server.settings import ListenError, ServerSettings
from server.conftest import Serving


@pytest.fixture
def used_address() -> Iterator[str]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield f"127.0.0.1:{holder.getsockname()[1]}"


def test_a_used_port_is_an_error_before_the_model_is_loaded(
    used_address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ListenError, match=f"cannot listen on {used_address} for metrics"):
        MetricsServer(used_address, CollectorRegistry())
    assert main(["--listen", "127.0.0.1:0", "--metrics-listen", used_address]) == 2
    output = capsys.readouterr().err
    assert output.strip().splitlines()[-1].startswith(f"error: cannot listen on {used_address} for metrics")
    assert "weights" not in output


@pytest.mark.parametrize("wrong", ["9090", ":9090", "localhost", "localhost:http", "localhost:70000", "unix:/x"])
def test_a_malformed_address_is_refused(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ListenError, match="is not HOST:PORT"):
        ServerSettings(metrics_listen=wrong)
    assert main(["--metrics-listen", wrong]) == 2
    assert "is not HOST:PORT" in capsys.readouterr().err


def test_a_closed_port_can_be_bound_again() -> None:
    port = MetricsServer("localhost:0", CollectorRegistry())
    url = f"http://{port.address}/metrics"
    with urllib.request.urlopen(url, timeout=5) as answer:
        assert answer.status == 200
    port.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=5)
    MetricsServer(port.address, CollectorRegistry()).close()


def test_a_used_default_port_is_a_warning(
    used_address: str, serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(metrics_listen=used_address, metrics_required=False) as server:
        assert server.server.metrics_address is None
        assert f"Serving without metrics: cannot listen on {used_address}" in caplog.text
        server.stub.Tokenize(pb.TokenizeRequest(input=pb.Input(prompt="a")))


# --- hostile clients -------------------------------------------------------------------------------------------------


@pytest.fixture
def port() -> Iterator[MetricsServer]:
    registry = CollectorRegistry()
    Counter("a", "b", registry=registry).inc()
    metrics_server_ = MetricsServer("127.0.0.1:0", registry)
    yield metrics_server_
    metrics_server_.close()


def scrape(
    port: MetricsServer, headers: dict[str, str] | None = None, path: str = "/metrics"
) -> tuple[int, bytes, Any]:
    connection = http.client.HTTPConnection(port.address, timeout=5)
    connection.request("GET", path, headers=headers or {})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, answer.headers


def connect(port: MetricsServer) -> socket.socket:
    host, _, number = port.address.rpartition(":")
    return socket.create_connection((host, int(number)), timeout=5)


def hung_up(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_metrics_are_served_in_prometheus_formats(port: MetricsServer) -> None:
    status, content, headers = scrape(port)
    assert status == 200
    assert b"a_total 1.0" in content
    assert headers["Content-Type"].startswith("text/plain")
    assert headers["Connection"] == "close"
    _, content, headers = scrape(port, {"Accept": "application/openmetrics-text", "accept-encoding": "gzip"})
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert gzip.decompress(content).endswith(b"# EOF\n")
    assert b"a_total" not in scrape(port, path="/metrics?name[]=other")[1]


def test_idle_connections_start_no_threads_and_block_no_scrape(port: MetricsServer) -> None:
    before = threading.active_count()
    idle = [connect(port) for _ in range(300)]
    try:
        for connection in idle[::2]:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: ")
        assert scrape(port)[0] == 200
        assert threading.active_count() <= before
        assert hung_up(idle[0])  # the oldest was closed
    finally:
        for connection in idle:
            connection.close()


@pytest.mark.parametrize("sends", [b"", b"GET /met", b"GET / HTTP/1.1\r\nA: b\r\n"])
def test_the_connection_of_an_unfinished_request_is_closed(
    port: MetricsServer, sends: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_server, "CONNECTION_SECONDS", 0.2)
    with connect(port) as connection:
        connection.sendall(sends)
        assert hung_up(connection)


def test_the_connection_of_a_request_sent_byte_by_byte_is_closed(
    port: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_server, "CONNECTION_SECONDS", 0.2)
    until = time.monotonic() + 3
    with connect(port) as connection, suppress(OSError):
        while time.monotonic() < until:
            connection.sendall(b"G")
            time.sleep(0.01)
    assert time.monotonic() < until


@pytest.mark.parametrize(
    ("sends", "status"),
    [
        (b"GET / HTTP/1.1\r\n" + b"A: " + b"b" * 20_000 + b"\r\n\r\n", b"431"),
        (b"x" * 20_000, b"431"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", b"400"),
        (b"\r\n\r\n", b"400"),
        (b"GET /\r\n\r\n", b"400"),
        (b"GET / HTTP/3\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x00\xff\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"405"),
    ],
)
def test_malformed_requests_are_refused(port: MetricsServer, sends: bytes, status: bytes) -> None:
    with connect(port) as connection:
        connection.sendall(sends)
        assert connection.recv(4096).startswith(b"HTTP/1.1 " + status)
    assert scrape(port)[0] == 200
