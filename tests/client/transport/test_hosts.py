"""One DNS name for several servers that start and stop: real servers on loopback addresses, and a real DNS server."""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from client.conftest import FakeServer
from gradellm import AsyncClient, Client
from gradellm.transport import channels
from gradellm.v1 import explainer_pb2_grpc
from support.dns_server import DnsServer

pytestmark = pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="needs dnsmasq (Debian: dnsmasq-base)")

NAME = "models.test"
CALLS = 24


class Hosts:
    """Fake servers, an address each, at one port; they replace connections twice a second."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._servers: dict[str, tuple[FakeServer, grpc.Server]] = {}

    def add(self, address: str) -> None:
        fake = FakeServer()
        options = [("grpc.so_reuseport", 0), ("grpc.max_connection_age_ms", 500)]
        server = grpc.server(futures.ThreadPoolExecutor(CALLS), options=options)
        explainer_pb2_grpc.add_ExplainerServiceServicer_to_server(fake, server)  # type: ignore[no-untyped-call]
        server.add_insecure_port(f"{address}:{self.port}")
        server.start()
        self._servers[address] = fake, server

    def kill(self, address: str) -> None:
        self._servers.pop(address)[1].stop(None).wait()

    def counted(self) -> list[int]:
        """Calls of each host since the last call of this method."""
        counts = [len(fake.requests) for fake, _ in self._servers.values()]
        for fake, _ in self._servers.values():
            fake.requests.clear()
        return counts

    def close(self) -> None:
        for address in list(self._servers):
            self.kill(address)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    hosts = Hosts()
    for number in (1, 2, 3):
        hosts.add(f"127.0.0.{number}")
    yield hosts
    hosts.close()


@pytest.fixture
def names(tmp_path: Path, hosts: Hosts) -> Iterator[DnsServer]:
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with DnsServer(tmp_path, "127.0.0.1", port, ttl_seconds=1) as server:
        server.set_addresses(NAME, ["127.0.0.1", "127.0.0.2", "127.0.0.3"])
        yield server


def _target(hosts: Hosts, names: DnsServer) -> str:
    return f"dns://{names.address}:{names.port}/{NAME}:{hosts.port}"


def _at_once(target: str) -> None:
    with Client(target) as client, futures.ThreadPoolExecutor(CALLS) as pool:
        assert all(explanation.finished for explanation in pool.map(client.explain, ["Once"] * CALLS))


def _at_once_in_asyncio(target: str) -> None:
    async def ask() -> None:
        async with AsyncClient(target) as client:
            for explanation in await asyncio.gather(*(client.explain("Once") for _ in range(CALLS))):
                assert explanation.finished

    asyncio.run(ask())


@pytest.mark.parametrize("ask", [_at_once, _at_once_in_asyncio])
def test_first_calls_are_spread_over_all_hosts(hosts: Hosts, names: DnsServer, ask: Callable[[str], None]) -> None:
    ask(_target(hosts, names))
    assert hosts.counted() == [pytest.approx(CALLS / 3, abs=2)] * 3


def test_an_unreachable_host_fails_at_once(names: DnsServer) -> None:
    del names
    began = time.monotonic()
    with Client("dns://127.0.0.1:1/nowhere.test:1", retry=None) as client, pytest.raises(Exception, match="nowhere"):
        client.server_info(timeout=0.5)
    assert time.monotonic() - began < 3


def test_servers_come_and_go(hosts: Hosts, names: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    often = {**dict(channels.CHANNEL_OPTIONS), "grpc.dns_min_time_between_resolutions_ms": 100}
    monkeypatch.setattr(channels, "CHANNEL_OPTIONS", tuple(often.items()))
    with Client(_target(hosts, names)) as client:

        def ask_until(holds: Callable[[list[int]], bool]) -> None:
            until = time.monotonic() + 20
            while time.monotonic() < until:
                for _ in range(CALLS):
                    client.explain("Once")  # none fails
                if holds(hosts.counted()):
                    return
            raise AssertionError("not within 20 s")

        ask_until(lambda counts: min(counts) >= CALLS / 3 - 2)
        hosts.add("127.0.0.4")
        names.set_addresses(NAME, [f"127.0.0.{number}" for number in (1, 2, 3, 4)])
        ask_until(lambda counts: min(counts) >= CALLS / 4 - 2)  # though none has failed
        hosts.kill("127.0.0.1")
        ask_until(lambda counts: len(counts) == 3 and min(counts) >= CALLS / 3 - 2)
        names.set_addresses(NAME, [f"127.0.0.{number}" for number in (2, 3)])
        ask_until(lambda counts: counts[2] == 0)  # alive, but no longer among them
