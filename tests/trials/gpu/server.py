"""A server process on a GPU, observed from its start, and the checkpoint that it serves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import torch

from gradellm_bench.models import random_llama
from trials.serving import SERVING, Served, free_port

START_SECONDS = 300.0


@dataclass
class StartedServer:
    """A server and what was seen of its start.

    Attributes:
        served: the process and its addresses.
        metrics: address of its metrics.
        log: lines of its standard error, with seconds from the start.
        ready: seconds until it was ready.
        checks: health checks meanwhile: seconds from the start, service, status or code, and duration in seconds.
    """

    served: Served
    metrics: str
    log: list[tuple[float, str]]
    ready: float = 0.0
    checks: list[tuple[float, str, str, float]] = field(default_factory=list)


def save_model(folder: Path, shape: str, device: torch.device) -> None:
    """Save a random Llama of a named shape, with a tokenizer that has a word for each token."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model, tokenizer = random_llama(shape, dtype=dtype, device=device)
    model.save_pretrained(folder, max_shard_size="4GB")
    tokenizer.save_pretrained(folder)


def server_command(model: Path | None, device: str, *arguments: str) -> list[str]:
    """The command line of a server; the demo model's where no checkpoint is given."""
    model_arguments = [] if model is None else ["--model", str(model)]
    return [sys.executable, "-m", "gradellm_server", *model_arguments, "--device", device, *arguments]


@contextmanager
def start_server(model: Path, device: str, log: Path, *arguments: str) -> Iterator[StartedServer]:
    """A server that is ready, with its log and health checks from the start; its log is written to a file, too."""
    address, health, metrics = (f"127.0.0.1:{free_port()}" for _ in range(3))
    listening = ["--listen", address, "--health-port", health, "--metrics-listen", metrics]
    start = time.monotonic()
    process = subprocess.Popen(
        server_command(model, device, *listening, *arguments),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TQDM_DISABLE": "1"},
    )
    server = StartedServer(Served(process, address, health), metrics, [])
    stderr = process.stderr
    assert stderr is not None

    def read_log() -> None:
        with log.open("w") as file:
            for line in stderr:
                server.log.append((time.monotonic() - start, line.rstrip()))
                print(f"{server.log[-1][0]:7.1f} {server.log[-1][1]}", file=file, flush=True)

    threading.Thread(target=read_log, daemon=True).start()
    try:
        with grpc.insecure_channel(health) as channel:
            while not _is_ready(server, channel, start):
                if process.poll() is not None or time.monotonic() - start > START_SECONDS:
                    raise RuntimeError("the server did not start: " + "\n".join(line for _, line in server.log[-20:]))
                time.sleep(0.1)
        server.ready = time.monotonic() - start
        yield server
    finally:
        process.kill()
        process.wait()


def _is_ready(server: StartedServer, channel: grpc.Channel, start: float) -> bool:
    """Check both services and record the outcomes."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub: Any = health_pb2_grpc.HealthStub(channel)
    statuses = {}
    for service in ("live", "ready"):
        check_start = time.monotonic()
        try:
            status = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status
            shown = "SERVING" if status == SERVING else "NOT_SERVING"
        except grpc.RpcError as error:
            shown = str(getattr(error, "code")().name)  # noqa: B009 (missing in grpc's type stubs)
        statuses[service] = shown
        server.checks.append((check_start - start, service, shown, time.monotonic() - check_start))
    return statuses["ready"] == "SERVING"


def scrape_metrics(address: str) -> dict[str, float]:
    """Metrics by name; of a metric with labels, one of its values."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
        text = response.read().decode()
    metrics = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"(gradellm_\w+)(\{.*\})? (\S+)", line):
            metrics[match[1]] = float(match[3])
    return metrics
