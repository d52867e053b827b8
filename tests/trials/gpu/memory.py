"""Another process takes nearly all the GPU's memory while requests arrive."""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from gradellm import AsyncClient, GradellmError
from trials.gpu.server import StartedServer
from trials.gpu.streams import (
    CALL_SECONDS,
    LONG_PROMPT,
    PROMPT,
    StreamTiming,
    gaps_of,
    milliseconds,
    random_prompt,
    spread,
    time_streams,
)
from trials.report import Finding, percentile
from trials.serving import SERVING, load, result

HOLD_SECONDS = 25.0  # for which another process holds the GPU's memory
ALLOWED = {"OK", "OUT_OF_MEMORY"}


@dataclass(frozen=True)
class Batch:
    """Streams that ran at once: how many ended with which reason ("3 OK, 1 OUT_OF_MEMORY"), and their timings."""

    outcome: str
    timings: list[StreamTiming]

    @property
    def is_allowed(self) -> bool:
        """Whether every stream finished or failed for lack of memory."""
        return {part.split()[1] for part in self.outcome.split(", ")} <= ALLOWED


@dataclass(frozen=True)
class MemoryPressure:
    """Outcomes while another process holds the GPU's memory.

    Attributes:
        free_bytes: that it left.
        large_request: outcome of a request that needs gigabytes.
        short, long: streams after short and long prompts.
        probes: outcome of the health checks.
        is_held: whether it still held the memory at the end.
    """

    free_bytes: int
    large_request: str
    short: Batch
    long: Batch
    probes: dict[str, Any]
    is_held: bool


def out_of_memory(server: StartedServer, count: int, num_tokens: int) -> list[Finding]:
    """Requests may fail with OUT_OF_MEMORY; the server must keep running and serve once memory is free again."""
    address = server.served.address
    before, calm = asyncio.run(_large_request(address)), _batch(address, count, num_tokens, PROMPT, 30)
    log_length = len(server.log)
    pressure = _under_pressure(server, count, num_tokens)
    after = asyncio.run(_large_request(address))
    short, long = (
        _batch(address, count, num_tokens, length, seed) for length, seed in ((PROMPT, 33), (LONG_PROMPT, 34))
    )
    warnings = Counter(
        re.sub(r"\d+", "N", line)[:140] for _, line in server.log[log_length:] if "WARNING" in line or "rror" in line
    )
    is_well = all(server.served.health(service) == SERVING for service in ("live", "ready"))
    gaps = [statistics.median(gaps_of(batch.timings)) for batch in (calm, short)]
    health = pressure.probes["seconds"]
    return [
        Finding("a request of some GiB, before", before, "OK", before == "OK"),
        Finding("memory that another process leaves free",
                f"{pressure.free_bytes / 2**20:,.0f} MiB, held on: {pressure.is_held}"),
        Finding("the same request with little memory free", pressure.large_request, "OUT_OF_MEMORY",
                pressure.large_request == "OUT_OF_MEMORY"),
        Finding(f"{count} streams after {PROMPT} tokens, with little memory free", pressure.short.outcome,
                "OK or OUT_OF_MEMORY", pressure.short.is_allowed),
        Finding(f"{count} streams after {LONG_PROMPT} tokens, with little memory free", pressure.long.outcome,
                "OK or OUT_OF_MEMORY", pressure.long.is_allowed),
        Finding("health checks meanwhile", spread(health), "99th percentile 1 s", percentile(health, 99) < 1),
        Finding("warnings in the log", "; ".join(f"{n} times {line}" for line, n in warnings.items()) or "nothing"),
        Finding("the large request, once memory is free again", after, "OK", after == "OK"),
        Finding("the streams, once memory is free again", f"{short.outcome}; {long.outcome}", "all OK",
                {short.outcome, long.outcome} == {f"{count} OK"}),
        Finding("their median gap, before and after", " and ".join(map(milliseconds, gaps)), "+20%",
                gaps[1] < 1.2 * gaps[0]),
        Finding("live and ready, once memory is free again", str(is_well), "both", is_well),
    ]  # fmt: skip


def _under_pressure(server: StartedServer, count: int, num_tokens: int) -> MemoryPressure:
    address = server.served.address
    holder = subprocess.Popen(
        [sys.executable, "-m", "trials.gpu", "--hold-memory", str(HOLD_SECONDS)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        free_bytes = json.loads(holder.stdout.readline())["free_bytes"]
        with load("probes", server.served.health_address, seconds=8, services=["ready", "live"]) as prober:
            large_request = asyncio.run(_large_request(address))
            short = _batch(address, count, num_tokens, PROMPT, 31)
            long = _batch(address, count, num_tokens, LONG_PROMPT, 32)
            probes = result(prober, 60)
        is_held = holder.poll() is None
        holder.wait(HOLD_SECONDS + 60)
    finally:
        holder.kill()
        holder.wait()
    return MemoryPressure(free_bytes, large_request, short, long, probes, is_held)


async def _large_request(address: str) -> str:
    """Outcome of a request that needs gigabytes."""
    async with AsyncClient(address, retry=None) as client:
        try:
            await client.attribute(
                random_prompt(600, 3), completion_ids=list(range(5, 37)), method="saliency", timeout=CALL_SECONDS
            )
        except GradellmError as error:
            return error.reason or f"{type(error).__name__}: {error}"
        return "OK"


def _batch(address: str, count: int, num_tokens: int, prompt_tokens: int, seed: int) -> Batch:
    timings, _ = asyncio.run(
        time_streams(address, count, num_tokens, prompt_tokens, seed, attribution="paper", delivery="per_token")
    )
    reasons = Counter(timing.reason or "OK" for timing in timings)
    return Batch(", ".join(f"{number} {reason}" for reason, number in reasons.items()), timings)


def hold_memory(seconds: float) -> None:
    """Allocate all of the GPU's free memory, and what becomes free, for `seconds`; print what is left as JSON."""
    held, until, is_reported = [], time.monotonic() + seconds, False
    size = 2**30
    while time.monotonic() < until:
        try:
            held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            if size > 2**21:
                size //= 2
                continue
            if not is_reported:
                print(json.dumps({"free_bytes": torch.cuda.mem_get_info()[0]}), flush=True)
                is_reported = True
            time.sleep(0.02)
