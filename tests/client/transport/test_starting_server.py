"""A server that listens and does not answer yet is told apart from none, and from other services."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradellm.transport.starting_server import is_starting

REFUSED = "failed to connect to all addresses; last error: UNKNOWN: Failed to connect to remote host"
SILENT = "failed to connect to all addresses; last error: connection attempt timed out before receiving SETTINGS frame"


@pytest.fixture
def port() -> Iterator[int]:
    """A port of 127.0.0.1 that accepts connections and answers nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        number: int = closed.getsockname()[1]
    return number


@pytest.mark.parametrize("form", ["127.0.0.1:PORT", "localhost:PORT", "ipv4:127.0.0.1:PORT", "dns:///localhost:PORT"])
def test_a_port_that_accepts_connections_is_starting(form: str, port: int, free_port: int) -> None:
    assert is_starting(form.replace("PORT", str(port)), REFUSED)
    assert not is_starting(form.replace("PORT", str(free_port)), REFUSED)


def test_a_socket_that_accepts_connections_is_starting(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        assert not is_starting(f"unix:{path}", REFUSED)  # bound, and does not listen yet
        listening.listen()
        assert is_starting(f"unix:{path}", REFUSED)
        assert is_starting(f"unix://{path}", REFUSED)
    assert not is_starting(f"unix:{path}", REFUSED)
    assert not is_starting(f"unix:{tmp_path}/none.sock", REFUSED)


@pytest.mark.parametrize("target", ["192.0.2.1:50051", "models.test:50051", "[2001:db8::1]:50051", "ipv4:192.0.2.1:1"])
def test_other_hosts_are_not_connected_to(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a host does not answer, a connection would delay the error; gRPC's own message suffices."""
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("a connection was tried"))
    assert not is_starting(target, REFUSED)
    assert is_starting(target, SILENT)


@pytest.mark.parametrize(
    "message",
    [
        "the server drains",
        "failed to connect: Ssl handshake failed",
        "failed to connect: Trying to connect an http1.x server",
        "failed to connect: Socket closed",
        "failed to connect: recvmsg: Connection reset by peer",
        "failed to connect: certificate verify failed",
    ],
)
def test_other_failures_are_not_those_of_a_starting_server(message: str, port: int) -> None:
    """The port is of another service then, or the connection was established."""
    assert not is_starting(f"127.0.0.1:{port}", message)


@pytest.mark.parametrize("target", ["127.0.0.1:99999", "127.0.0.1", "127.0.0.1:", "unix:", "unix:\0", "a:1,b:2", ""])
def test_targets_that_cannot_be_connected_to_are_not_starting(target: str) -> None:
    assert not is_starting(target, REFUSED)
