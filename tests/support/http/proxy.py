"""A fake HTTP proxy, set in all proxy variables of the environment, that records what it receives."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

USERS_WORD = "geheim"
VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy")
EVERY_CASE = (*VARIABLES, *(name.upper() for name in VARIABLES))


class FakeProxy:
    """Records the first bytes of each connection in `heard`, and responds with `answer`."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.answer: bytes | None = b"HTTP/1.1 403 Forbidden\r\n\r\n"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._open: list[socket.socket] = []

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(2)
            try:
                self.heard.append(connection.recv(4096))
            except OSError:
                self.heard.append(b"")
            if self.answer is None:
                self._open.append(connection)
            else:
                with connection:
                    connection.sendall(self.answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        for connection in self._open:
            connection.close()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeProxy]:
    """What every variable of the environment names."""
    proxy = FakeProxy()
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in EVERY_CASE:
        monkeypatch.setenv(name, f"http://user:{USERS_WORD}@127.0.0.1:{proxy.port}")
    yield proxy
    proxy.close()
