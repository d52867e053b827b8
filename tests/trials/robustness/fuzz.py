"""Random and malformed requests must not crash, hang or leak a server."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc

from support import fuzzing
from trials.report import Finding
from trials.serving import MIB, SERVING, served


def fuzz(scale: float) -> list[Finding]:
    """Send random requests twice; the second pass must not raise the server's memory."""
    requests = fuzzing.many(max(200, round(20_000 * scale)))
    codes: Counter[str] = Counter()
    wrong: list[str] = []
    slowest = 0.0
    memory: list[int] = []
    with served() as server:
        for _ in range(2):
            with grpc.insecure_channel(server.address) as channel, ThreadPoolExecutor(8) as pool:

                def send(request: fuzzing.Request, channel: grpc.Channel = channel) -> float:
                    start = time.monotonic()
                    code, message = fuzzing.send(channel, request, 120)
                    codes[code.name] += 1
                    if code not in fuzzing.ALLOWED:
                        wrong.append(f"{code.name} {message} {request}")
                    return time.monotonic() - start

                slowest = max(slowest, *pool.map(send, requests))
            time.sleep(2)
            memory.append(server.memory_bytes)
        is_alive = server.process.poll() is None and server.health("live") == SERVING
    growth = memory[1] / memory[0] - 1
    statuses = ", ".join(f"{count:,} {name}" for name, count in codes.most_common())
    return [
        Finding("requests", f"2 x {len(requests):,}: {statuses}"),
        Finding("crash, hang, INTERNAL or UNKNOWN", f"{len(wrong)}{f': {wrong[0]}' if wrong else ''}", "none",
                not wrong and is_alive),
        Finding("slowest response", f"{slowest:.1f} s"),
        Finding("memory after the second pass", f"{growth:+.2%} of {memory[0] / MIB:.0f} MiB", "within 2%",
                abs(growth) <= 0.02),
    ]  # fmt: skip
