"""Addresses: one in use is refused, and the socket of a dead server is replaced."""

from __future__ import annotations

import asyncio
import socket
import stat
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from gradellm import Client
from gradellm_server import preflight
from gradellm_server.addresses import UnixSocket, resolve
from gradellm_server.preflight import ModelOptions
from gradellm_server.server import Server
from gradellm_server.settings import ListenError, ServerSettings
from server.conftest import Serving

Result = TypeVar("Result")


class Loop:
    """Makes servers on a running event loop."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def make(self, listen: str, **settings: Any) -> Server:
        async def new_server() -> Server:
            return Server(ServerSettings(listen=listen, **settings))

        return self.run(new_server())

    def stop(self, server: Server) -> None:
        self.run(server.stop(0))

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self._runner.run(asyncio.wait_for(work, 30))

    def close(self) -> None:
        self._runner.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.sock"


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    return True


@pytest.mark.parametrize("form", ["unix:{}", "unix://{}"])
def test_a_socket_in_use_is_refused_and_kept(loop: Loop, path: Path, form: str) -> None:
    first = loop.make(f"unix:{path}")  # it has not loaded its model yet
    before = path.stat().st_ino
    with pytest.raises(ListenError, match=f"cannot listen on .*{path}: another server listens there"):
        loop.make(form.format(path))
    assert path.stat().st_ino == before
    assert connects(path)
    loop.stop(first)
    assert list(path.parent.iterdir()) == []
    loop.stop(loop.make(form.format(path)))


def test_clients_reach_the_server_by_the_given_path(path: Path, serving: Serving) -> None:
    with serving(listen=f"unix:{path}") as server, Client(server.address) as client:
        assert client.server_info().model.family == "llama"
    assert not path.exists()


def test_the_socket_of_a_dead_server_is_replaced(loop: Loop, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.exists()
    server = loop.make(f"unix:{path}")
    assert connects(path)
    loop.stop(server)
    assert not path.exists()


def test_a_server_that_never_started_leaves_no_socket(loop: Loop, path: Path) -> None:
    server = loop.make(f"unix:{path}")
    assert path.exists()
    del server
    assert not path.exists()


def test_a_socket_that_another_server_replaced_is_kept(loop: Loop, path: Path) -> None:
    first = loop.make(f"unix:{path}")
    path.unlink()  # as by a clean-up of stale files
    second = loop.make(f"unix:{path}")
    loop.stop(first)
    assert connects(path)
    loop.stop(second)
    assert not path.exists()


def test_a_regular_file_is_not_replaced(loop: Loop, path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(ListenError, match="is not a socket"):
        loop.make(f"unix:{path}")
    assert path.read_text() == "precious"


def test_a_server_with_a_full_backlog_keeps_its_socket(path: Path) -> None:
    """As with a frozen process."""
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(str(path))
        frozen.listen(0)
        waiting = []
        while True:
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            waiting.append(client)
            try:
                client.connect(str(path))
            except BlockingIOError:
                break
        with pytest.raises(ListenError, match="another server"):
            UnixSocket(f"unix:{path}").take(lambda address: pytest.fail("bound"))
        for client in waiting:
            client.close()
    assert stat.S_ISSOCK(path.stat().st_mode)


@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ("unix:{}/absent/x.sock", "there is no such folder"),
        ("unix:{}/" + "x" * 120, "a socket's path has at most 107"),
    ],
)
def test_an_unusable_path_names_the_reason(loop: Loop, tmp_path: Path, listen: str, words: str) -> None:
    with pytest.raises(ListenError, match=words):
        loop.make(listen.format(tmp_path))


def test_a_path_with_odd_characters(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "a b%é.sock"
    server = loop.make("unix:" + str(path).replace("%", "%25").replace(" ", "%20"))
    assert connects(path)
    loop.stop(server)


def test_one_of_several_starting_servers_gets_the_socket(path: Path) -> None:
    program = (
        "import asyncio, sys, time\n"
        "from gradellm_server.addresses import UnixSocket\n"
        "import socket\n"
        "from gradellm_server.settings import ListenError\n"
        "def bind(address):\n"
        "    global own; own = socket.socket(socket.AF_UNIX); own.bind(address[5:]); own.listen()\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "mine = UnixSocket(sys.argv[1])\n"
        "try: mine.take(bind)\n"
        "except ListenError: print('refused', flush=True)\n"
        "else: print('taken', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))  # a stale file, which several servers may replace
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", program, f"unix:{path}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("\n")
            racer.stdin.flush()
        outcomes = sorted(racer.stdout.readline() for racer in racers if racer.stdout is not None)
    finally:
        for racer in racers:
            racer.communicate("\n", timeout=10)
    assert outcomes == ["refused\n"] * 3 + ["taken\n"]


def test_a_host_name_is_in_use_if_one_of_its_addresses_is(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC would bind the free ones, and callers of the used one would reach another server."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", port)) for n in (2, 1)]
        original = socket.getaddrinfo

        def getaddrinfo(host: str, *args: Any, **options: Any) -> Any:
            return both if host == "localhost" else original(host, *args, **options)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        with pytest.raises(
            ListenError, match=rf"cannot listen on localhost:{port}: address already in use \(127.0.0.1:{port}\)"
        ):
            loop.make(f"localhost:{port}")
        server = loop.make("127.0.0.1:0", health_listen=f"localhost:{port}")
        with pytest.raises(ListenError, match="for health checks: address already in use"):
            loop.run(server.serve_health())
        loop.stop(server)


def test_localhost_is_the_loopback_even_without_a_resolver(monkeypatch: pytest.MonkeyPatch, loop: Loop) -> None:
    """As in a container without /etc/hosts (RFC 6761, section 6.3); gRPC does the same."""
    original = socket.getaddrinfo

    def unknown(host: str, *args: Any, **options: Any) -> Any:
        if not options.get("flags", 0) & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return original(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert [address.sockaddr[:2] for address in resolve("LocalHost.", 50051)] == [("127.0.0.1", 50051), ("::1", 50051)]
    settings = ServerSettings(listen="localhost:0", metrics_listen="localhost:0", health_listen="localhost:0")
    preflight.check(settings, ModelOptions())
    with pytest.raises(ListenError, match="temporary failure in name resolution"):
        preflight.check(ServerSettings(listen="elsewhere.test:0", insecure=True), ModelOptions())
    server = loop.make("localhost:0", metrics_listen="localhost:0")
    loop.stop(server)
