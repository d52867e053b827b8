"""Servers and load generators as processes of their own, observed from outside."""

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
MIB = 2**20


@dataclass
class Served:
    """A server process and its addresses."""

    process: subprocess.Popen[str]
    address: str
    health_address: str

    @property
    def memory_bytes(self) -> int:
        """Its resident set size."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def health(self, service: str, timeout: float = 5.0) -> int:
        """The health status of a service."""
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
    """The demo model, served by `python -m gradellm_server`; on a free port where no address is given."""
    address, health = address or f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "gradellm_server", "--listen", address, "--health-port", health]
    command += ["--metrics-listen", "none", "--log-level", "error", *arguments]
    # Spinning OpenMP threads would take the load generator's core; `gradellm serve` sets the same.
    variables = {**os.environ, "GOMP_SPINCOUNT": "10000", **(environment or {})}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, text=True, env=variables)
    server = Served(process, address, health)
    try:
        limit = time.monotonic() + START_SECONDS
        while not _is_ready(server):
            if process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"the server was not ready after {START_SECONDS:g} s, or it ended")
            time.sleep(0.1)
        yield server
    finally:
        process.kill()
        process.wait()


def _is_ready(server: Served) -> bool:
    try:
        return server.health("ready", timeout=1.0) == SERVING
    except grpc.RpcError:
        return False


@contextmanager
def fake_server(num_tokens: int, num_scores: int, pause: float) -> Iterator[str]:
    """The address of a server without a model; see `trials.load.fake_server`."""
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "trials.load.fake_server", address, str(num_tokens), str(num_scores), str(pause)]
    process = subprocess.Popen(command)
    try:
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(START_SECONDS)
        yield address
    finally:
        process.kill()
        process.wait()


@contextmanager
def load(kind: str, address: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A load generator process; `result` waits for its outcome."""
    command = [sys.executable, "-m", "trials.load.generator", kind, address, json.dumps(options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def result(process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
    """A load generator's outcome; it must end within `seconds`."""
    output, _ = process.communicate(timeout=seconds)
    outcome: dict[str, Any] = json.loads(output)
    return outcome
