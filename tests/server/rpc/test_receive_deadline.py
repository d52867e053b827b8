"""Connections without a handshake, and calls whose request does not arrive, are closed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from gradellm.v1 import explainer_pb2 as pb
from gradellm_server import health
from gradellm_server import server as server_module
from server.conftest import RunningServer, Serving
from server.process.test_process import free_port

CALLS = [
    "/gradellm.v1.ExplainerService/Generate",
    "/gradellm.v1.ExplainerService/Tokenize",
    "/grpc.health.v1.Health/Check",
]


@pytest.fixture
def never() -> Iterator[Any]:
    """An iterator of requests that yields none and does not end."""
    over = threading.Event()

    def requests() -> Iterator[bytes]:
        over.wait(30)
        yield from ()

    yield requests
    over.set()


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("streams", [False, True])
def test_a_request_that_does_not_arrive_ends_its_call(serving: Serving, never: Any, method: str, streams: bool) -> None:
    with serving(receive_seconds=0.3) as running:
        if streams:
            call: Any = running.channel.stream_stream(method)(never())
        else:
            call = running.channel.stream_unary(method).future(never())
        with pytest.raises(grpc.RpcError) as raised:
            list(call) if streams else call.result(10)
        error: Any = raised.value
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "had not arrived after 0.3 s" in error.details()


@pytest.mark.parametrize("method", CALLS)
def test_a_call_without_a_request_is_refused(server: RunningServer, method: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        server.channel.stream_unary(method)(iter(()))
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_many_unfinished_requests_do_not_delay_others(serving: Serving, never: Any) -> None:
    with serving(receive_seconds=0.5) as running:
        begun: Any = running.channel.stream_unary(CALLS[0])
        calls = [begun.future(never()) for _ in range(20)]
        assert running.stub.Tokenize(pb.TokenizeRequest(input=pb.Input(prompt="a")), timeout=5).tokens
        for call in calls:
            assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("sends", [b"", b"PRI * HTTP/2.0\r\n"])
@pytest.mark.parametrize("where", ["listen", "health"])
def test_a_connection_without_handshake_is_closed(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, sends: bytes, where: str
) -> None:
    monkeypatch.setattr(server_module, "HANDSHAKE_SECONDS", 0.3)
    quick = [(name, 300 if "handshake" in name else value) for name, value in health.PORT_OPTIONS]
    monkeypatch.setattr(health, "PORT_OPTIONS", quick)
    port = free_port()
    with serving(health_listen=f"127.0.0.1:{port}") as running:
        port = port if where == "health" else int(running.address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(sends)
            began = time.monotonic()
            while connection.recv(4096):
                pass
            assert time.monotonic() - began < 3


def test_the_health_port_refuses_large_requests(serving: Serving) -> None:
    port = free_port()
    with serving(health_listen=f"127.0.0.1:{port}"), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        check: Any = channel.unary_unary(CALLS[2])
        with pytest.raises(grpc.RpcError) as raised:
            check(health_pb2.HealthCheckRequest(service="x" * 10_000).SerializeToString(), timeout=5)
        error: Any = raised.value
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
