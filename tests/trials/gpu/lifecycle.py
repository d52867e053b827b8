"""Start and end of a server: insufficient memory, start-up stages, metrics, SIGTERM under load."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

from gradellm import AsyncClient
from trials.gpu.server import START_SECONDS, StartedServer, scrape_metrics, server_command
from trials.gpu.streams import PROMPT, StreamTiming, random_prompt, spread, time_stream
from trials.report import Finding, percentile

GIB = 2**30


def insufficient_memory(model: Path | None, device: str, memory: str) -> list[Finding]:
    """A server must refuse a --kv-memory that the device does not have."""
    start = time.monotonic()
    ended = subprocess.run(
        server_command(model, device, "--listen", "127.0.0.1:0", "--metrics-listen", "none", "--kv-memory", memory),
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    last = (ended.stderr.strip().splitlines() or [""])[-1]
    return [
        Finding(
            f"--kv-memory {memory}",
            f"exit {ended.returncode} after {time.monotonic() - start:.0f} s: {last}",
            "one line that says so, exit 2",
            ended.returncode == 2 and last.startswith("error: ") and "--kv-memory" in last,
        )
    ]


def startup(server: StartedServer) -> list[Finding]:
    """Stages of the start, and health checks meanwhile."""
    stages = [(at, line) for at, line in server.log if line.startswith("gradellm: ")]
    shown = "; ".join(f"{at:.0f} s {line.removeprefix('gradellm: ')[:60]}" for at, line in stages)
    live = Counter(status for _, service, status, _ in server.checks if service == "live")
    serving = [at for at, service, status, _ in server.checks if service == "live" and status == "SERVING"]
    later = [check for check in server.checks if serving and check[0] >= serving[0]]
    not_live = [check for check in later if check[1] == "live" and check[2] != "SERVING"]
    durations = [seconds for *_, seconds in later]
    return [
        Finding("ready", f"after {server.ready:.1f} s"),
        Finding("start-up stages", shown),
        Finding("live during start-up, from the first response on", f"{len(not_live)} times not, of {live.total()}",
                "always", not not_live),
        Finding("health checks meanwhile, median / 99th percentile / largest", spread(durations),
                "99th percentile 1 s", percentile(durations, 99) < 1),
    ]  # fmt: skip


def metrics(server: StartedServer) -> list[Finding]:
    """Metrics after the load, those of the device's memory among them."""
    values = scrape_metrics(server.metrics)
    names = ("kv_cache_tokens", "max_running_requests", "generation_tokens_total", "attribution_tokens_total")
    shown = ", ".join(f"{name} {values.get(f'gradellm_{name}', float('nan')):,.0f}" for name in names)
    memory = {name: value for name, value in values.items() if "device_memory" in name}
    shown_memory = ", ".join(f"{name} {value / GIB:.1f} GiB" for name, value in memory.items()) or "none"
    return [Finding("metrics", f"{len(values)} names; {shown}"), Finding("of them, of the GPU's memory", shown_memory)]


def drain(server: StartedServer, count: int, num_tokens: int) -> list[Finding]:
    """SIGTERM under streams: none may be lost."""

    async def run() -> tuple[list[StreamTiming], float]:
        async with AsyncClient(server.served.address, retry=None) as client:
            streams = [
                asyncio.create_task(
                    time_stream(client, random_prompt(PROMPT, 9000 + i), num_tokens, attribution="paper")
                )
                for i in range(count)
            ]
            await asyncio.sleep(1.0)
            start = time.monotonic()
            server.served.process.send_signal(signal.SIGTERM)
            timings = await asyncio.gather(*streams)
            await asyncio.to_thread(server.served.process.wait, 60)
            return list(timings), time.monotonic() - start

    timings, seconds = asyncio.run(run())
    lost = [timing for timing in timings if timing.reason or len(timing.gaps) != num_tokens - 1]
    status = server.served.process.returncode
    return [
        Finding(f"SIGTERM under {count} streams of {num_tokens} tokens: lost", str(len(lost)), "none", not lost),
        Finding("exit", f"{status}, after {seconds:.1f} s", "0, within 10 s", status == 0 and seconds < 12),
    ]
