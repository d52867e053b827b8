"""A server as a process of its own, and what can be seen of it from outside."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

START_SECONDS = 120.0
SERVING = health_pb2.HealthCheckResponse.SERVING


@dataclass
class Served:
    """A server process."""

    process: subprocess.Popen[str]
    address: str
    health_address: str

    @property
    def memory_bytes(self) -> int:
        """What it holds in memory."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def health(self, service: str, timeout: float = 5.0) -> int:
        """What it says of a service."""
        with grpc.insecure_channel(self.health_address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout).status)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(
    *arguments: str, environment: Mapping[str, str] | None = None, address: str | None = None
) -> Iterator[Served]:
    """The demo model, served as `gradellm serve` does; at a free port where no address is given."""
    address, health = address or f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "gradellm_server", "--listen", address, "--health-port", health]
    command += ["--metrics-listen", "none", "--log-level", "error", *arguments]
    # Threads that spin would take the core of the load; the command line starts a server so, too.
    own = {**os.environ, "GOMP_SPINCOUNT": "10000", **(environment or {})}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, text=True, env=own)
    its = Served(process, address, health)
    try:
        limit = time.monotonic() + START_SECONDS
        while not _is_ready(its):
            if process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError("the server did not start")
            time.sleep(0.1)
        yield its
    finally:
        process.kill()
        process.wait()


def _is_ready(its: Served) -> bool:
    try:
        return its.health("ready", timeout=1.0) == SERVING
    except grpc.RpcError:
        return False


@contextmanager
def played(count: int, num_scores: int, pause: float) -> Iterator[str]:
    """A server without a model, see `trials.fake_server`; its address."""
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "trials.fake_server", address, str(count), str(num_scores), str(pause)]
    process = subprocess.Popen(command)
    try:
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(START_SECONDS)
        yield address
    finally:
        process.kill()
        process.wait()


@contextmanager
def load(kind: str, address: str, **how: Any) -> Iterator[subprocess.Popen[str]]:
    """A load generator as a process of its own; read its end with `result`."""
    command = [sys.executable, "-m", "trials.load_generator", kind, address, json.dumps(how)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def result(process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
    """What a load generator found; it must end within so many seconds."""
    output, _ = process.communicate(timeout=seconds)
    found: dict[str, Any] = json.loads(output)
    return found
