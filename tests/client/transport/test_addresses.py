"""Targets: which are on this machine, and that their calls bypass proxies of the environment."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest

from client.conftest import FakeServer
from gradellm import AsyncClient, Client, DeadlineExceededError, UnavailableError
from gradellm.cli import main
from gradellm.transport.addresses import is_on_this_machine, proxy_of
from gradellm.v1 import explainer_pb2_grpc
from support.http.proxy import USERS_WORD, FakeProxy, proxy

__all__ = ["proxy"]

TOKEN = "gradellm_made_up_for_a_test"


@pytest.fixture
def port(fake: FakeServer) -> Iterator[int]:
    """The fake server's, on both loopback addresses."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    explainer_pb2_grpc.add_ExplainerServiceServicer_to_server(fake, server)  # type: ignore[no-untyped-call]
    chosen = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield chosen
    server.stop(None).wait()


HERE = [
    "localhost:PORT",
    "LocalHost:PORT",
    "localhost.:PORT",
    "127.0.0.1:PORT",
    "127.9.9.9:PORT",
    "0.0.0.0:PORT",
    "[::ffff:127.0.0.1]:PORT",
    "ipv4:127.0.0.1:PORT",
    "ipv4:127.0.0.1:PORT,127.0.0.2:PORT",
    "dns:localhost:PORT",
    "dns:///localhost:PORT",
    "127.0.0.1:PORT,localhost:PORT",
    "UNIX",
]


@pytest.mark.parametrize("target", HERE)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_calls_to_this_machine_go_to_no_proxy(
    proxy: FakeProxy, fake: FakeServer, port: int, target: str, kind: str
) -> None:
    target = fake.target if target == "UNIX" else target.replace("PORT", str(port))
    try:
        ask(kind, target)
    except UnavailableError:  # 127.9.9.9 and others, where the server does not listen
        pass
    else:
        assert len(fake.requests) == 1
    assert proxy.heard == []


def test_the_command_line_uses_no_proxy(
    proxy: FakeProxy, fake: FakeServer, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADELLM_TOKEN", TOKEN)
    assert main(["info", "--target", f"localhost:{port}"]) == 0
    assert len(fake.requests) == 1
    assert proxy.heard == []


def test_a_local_server_is_reached_without_the_proxy(proxy: FakeProxy, server_module: None) -> None:
    with Client.local() as client:
        assert client.server_info().model.name == "demo"
    assert proxy.heard == []


def test_a_remote_target_of_several_uses_the_proxy(proxy: FakeProxy, port: int, fake: FakeServer) -> None:
    with Client(f"localhost:{port},elsewhere.example:50051") as client:
        for _ in range(3):
            client.server_info()
    assert all(heard.startswith(b"CONNECT elsewhere.example:50051 ") for heard in proxy.heard)
    assert len(fake.requests) == 3


def ask(kind: str, target: str) -> None:
    if kind == "sync":
        with Client(target, retry=None) as client:
            client.tokenize("a secret", timeout=5)
        return

    async def ask_twin() -> None:
        async with AsyncClient(target, retry=None) as client:
            await client.tokenize("a secret", timeout=5)

    asyncio.run(ask_twin())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_error_names_the_proxy_and_not_its_password(proxy: FakeProxy, kind: str) -> None:
    with pytest.raises(UnavailableError) as refused:
        ask(kind, "elsewhere.example:50051")
    message = str(refused.value)
    assert (
        f"elsewhere.example:50051 through the proxy 127.0.0.1:{proxy.port} (environment variable grpc_proxy)" in message
    )
    assert "no_proxy" in message
    assert USERS_WORD not in message
    assert proxy.heard[0].startswith(b"CONNECT elsewhere.example:50051 ")


def test_a_proxy_that_does_not_answer_is_named(proxy: FakeProxy) -> None:
    proxy.answer = None
    with (
        Client("elsewhere.example:50051", retry=None) as client,
        pytest.raises(DeadlineExceededError, match=f"through the proxy 127.0.0.1:{proxy.port}"),
    ):
        client.server_info(timeout=0.3)


@pytest.mark.parametrize(
    ("environment", "target", "expected"),
    [
        ({}, "a.example:1", None),
        ({"http_proxy": "http://p:3128"}, "a.example:1", "p:3128"),
        ({"http_proxy": "http://u:s@p:3128/"}, "a.example:1", "p:3128"),
        ({"http_proxy": "http://p"}, "dns:///a.example:1", "p"),
        ({"http_proxy": "http://[::2]:3128"}, "10.0.0.1:1", "[::2]:3128"),
        ({"http_proxy": "http://p:1", "https_proxy": "http://q:2"}, "a.example:1", "q:2"),
        ({"http_proxy": "http://p:1", "grpc_proxy": ""}, "a.example:1", None),
        ({"HTTP_PROXY": "http://p:1", "all_proxy": "http://p:1"}, "a.example:1", None),  # which gRPC does not read
        ({"http_proxy": "socks5://p:1"}, "a.example:1", None),
        ({"http_proxy": "http://p:port"}, "a.example:1", None),
        ({"http_proxy": "http://p:1"}, "localhost:1", None),
        ({"http_proxy": "http://p:1"}, "unix:/tmp/x", None),
        ({"http_proxy": "http://p:1"}, "x.localhost:1", None),
        ({"http_proxy": "http://p:1", "no_proxy": "b.example, .example"}, "a.example:1", None),
        ({"http_proxy": "http://p:1", "no_proxy": "A.EXAMPLE"}, "a.example:1", None),
        ({"http_proxy": "http://p:1", "no_proxy": "10.0.0.0/8"}, "10.1.2.3:1", None),
        ({"http_proxy": "http://p:1", "no_proxy": "10.0.0.0/8"}, "11.1.2.3:1", "p:1"),
        ({"http_proxy": "http://p:1", "no_grpc_proxy": "b", "no_proxy": "a.example"}, "a.example:1", "p:1"),
    ],
)
def test_which_proxy_is_named(environment: dict[str, str], target: str, expected: str | None) -> None:
    found = proxy_of(target, environment)
    assert (found and found.address) == expected


@pytest.mark.parametrize(
    ("target", "is_local"),
    [
        ("0.0.0.0:1", True),
        ("[::]:1", True),
        ("x.localhost:1", True),
        ("ipv4:10.0.0.1:1,127.0.0.1:1", True),  # a proxy is used for none of several targets
        ("localhost.example:1", False),
        ("10.0.0.1:1", False),
        ("dns:///a.example:1", False),
    ],
)
def test_local_targets(target: str, is_local: bool) -> None:
    assert is_on_this_machine(target) is is_local
