"""Measures the cost of events on the wire: CPU time and bytes per token and attribution row, and Prometheus series.

    python deploy/capacity/wire.py --json docs/capacity-wire.json

A server hosts the demo model on this machine; the SDK in this process reads streams of short and long prompts. The gRPC
event loop has a thread of its own, whose CPU time Linux counts separately from the model's, so that other load on the
machine has little effect. Linux only; about a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, Literal

from gradellm import AsyncClient, Client
from gradellm.v1 import explainer_pb2 as pb

STREAMS, ROUNDS, NEW_TOKENS = 8, 6, 48
SHORT, LONG = "Once upon a time", "Once upon a time, Tim had a red ball. " * 34  # tokens: 6, and some 400
TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
START_SECONDS = 120.0


def main() -> int:
    """Measure; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--json", type=Path, help="write the result here, too")
    options = parser.parse_args()
    address, metrics = f"127.0.0.1:{_free_port()}", f"127.0.0.1:{_free_port()}"
    command = [
        sys.executable,
        "-m",
        "gradellm_server",
        "--listen",
        address,
        "--metrics-listen",
        metrics,
        "--threads",
        "1",
    ]
    process = subprocess.Popen(  # noqa: S603  (this project's server)
        [*command, "--log-level", "error"], env={**os.environ, "GOMP_SPINCOUNT": "10000"}, stderr=subprocess.DEVNULL
    )
    try:
        figures = _measure(process, address, metrics)
    finally:
        process.kill()
        process.wait()
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def _measure(process: subprocess.Popen[bytes], address: str, metrics: str) -> dict[str, Any]:
    _wait_until_ready(process, address)
    figures: dict[str, Any] = {"streams": STREAMS, "sources": {}}
    kinds: dict[str, tuple[str, Literal["paper"] | None]] = {
        "plain": (SHORT, None),
        "explained_short": (SHORT, "paper"),
        "explained_long": (LONG, "paper"),
    }
    for kind, (prompt, attribution) in kinds.items():
        asyncio.run(_load(address, prompt, attribution, 1))  # warms up
        before, start = _thread_seconds(process.pid), time.process_time()
        events, sources = asyncio.run(_load(address, prompt, attribution, ROUNDS))
        after, client_seconds = _thread_seconds(process.pid), time.process_time() - start
        main = str(
            process.pid
        )  # the event loop's thread; gRPC's threads are native and do not hold the interpreter lock
        figures[kind] = {
            "events": events,
            "server_us_an_event": round(1e6 * (after[main] - before[main]) / events, 1),
            "client_us_an_event": round(1e6 * client_seconds / events, 1),
        }
        figures["sources"][kind] = sources
    few, many = figures["explained_short"], figures["explained_long"]
    width = figures["sources"]["explained_long"] - figures["sources"]["explained_short"]
    figures["server_us_a_token"] = figures["plain"]["server_us_an_event"]
    figures["server_us_a_vector"] = round(2 * few["server_us_an_event"] - figures["plain"]["server_us_an_event"], 1)
    figures["server_us_a_thousand_scores"] = round(
        1000 * 2 * (many["server_us_an_event"] - few["server_us_an_event"]) / width, 1
    )
    figures["client_us_a_token_and_vector"] = round(2 * many["client_us_an_event"], 1)
    figures["bytes_of_a_token"] = pb.GenerateResponse(
        token=pb.Token(index=100, id=50_000, text=" word", start=400, end=405, logprob=-0.5, source_index=900)
    ).ByteSize()
    figures["bytes_of_a_vector_beside_scores"] = (
        pb.GenerateResponse(attribution=pb.Attribution(token_index=100, scores=[1.0] * 1000)).ByteSize() - 4000
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # without a proxy
    with direct.open(f"http://{metrics}/metrics") as response:
        lines = response.read().decode().splitlines()
    figures["prometheus_series"] = sum(1 for line in lines if line and not line.startswith("#"))
    return figures


async def _load(address: str, prompt: str, attribution: Literal["paper"] | None, rounds: int) -> tuple[int, int]:
    """Run `STREAMS` streams at once, `rounds` times each; events received, and scores of an attribution row."""
    async with AsyncClient(address) as client:

        async def run_stream() -> tuple[int, int]:
            events = sources = 0
            for _ in range(rounds):
                async for event in client.generate(
                    prompt, max_new_tokens=NEW_TOKENS, attribution=attribution, temperature=1.0, seed=1
                ):
                    events += 1
                    if event.attribution is not None:
                        sources = len(event.attribution.scores)
            return events, sources

        streams = await asyncio.gather(*(run_stream() for _ in range(STREAMS)))
    return sum(events for events, _ in streams), max(sources for _, sources in streams)


def _thread_seconds(pid: int) -> dict[str, float]:
    """CPU seconds of each thread of a process."""
    seconds = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        seconds[task.name] = (int(fields[11]) + int(fields[12])) * TICK_SECONDS
    return seconds


def _wait_until_ready(process: subprocess.Popen[bytes], address: str) -> None:
    limit = time.monotonic() + START_SECONDS
    with Client(address, retry=None) as client:
        while True:
            try:
                client.server_info(timeout=1)
            except Exception:
                if process.poll() is not None or time.monotonic() > limit:
                    raise
                time.sleep(0.2)
            else:
                return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
