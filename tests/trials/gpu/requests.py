"""Requests on a running server: the first streams, many streams at once, and requests that exceed its limits."""

from __future__ import annotations

import asyncio
import statistics
import threading
from collections import Counter
from typing import Any

from gradellm import AsyncClient, GradellmError
from trials.gpu.server import StartedServer, scrape_metrics
from trials.gpu.streams import gaps_of, milliseconds, random_prompt, spread, time_streams
from trials.report import Finding, percentile
from trials.serving import SERVING, load, result


def first_streams(server: StartedServer, num_tokens: int) -> list[Finding]:
    """Streams one after the other on a server that has served no request yet."""
    findings: list[Finding] = []
    for title, keywords in (
        ("first explained stream", {"attribution": "paper"}),
        ("second", {"attribution": "paper"}),
        ("in chunks", {"attribution": "paper", "delivery": "chunked"}),
        ("without explanation", {"attribution": None}),
    ):
        (timing,), _ = asyncio.run(time_streams(server.served.address, 1, num_tokens, seed=len(findings), **keywords))
        value = f"{milliseconds(timing.first or 0)}; {spread(timing.gaps)}"
        if timing.lags:
            value += f"; {milliseconds(statistics.median(timing.lags))}"
        findings.append(
            Finding(
                f"{title}: to its first token; between tokens, median / 99th / largest; from token to scores",
                value + (f"; {timing.reason}" if timing.reason else ""),
                "finishes",
                not timing.reason,
            )
        )
    return findings


MODES: list[tuple[str, dict[str, Any]]] = [
    ("explained, the first time", {"attribution": "paper"}),
    ("explained", {"attribution": "paper"}),
    ("explained in chunks, the first time", {"attribution": "paper", "delivery": "chunked"}),
    ("explained in chunks", {"attribution": "paper", "delivery": "chunked"}),
    ("without explanation, the first time", {"attribution": None}),
    ("without explanation", {"attribution": None}),
]


def many_streams(server: StartedServer, count: int, num_tokens: int) -> list[Finding]:
    """Streams of every mode at once, with health checks meanwhile."""
    heartbeat = 0.0
    is_over = threading.Event()

    def watch_heartbeat() -> None:
        nonlocal heartbeat
        while not is_over.wait(0.2):
            heartbeat = max(heartbeat, scrape_metrics(server.metrics)["gradellm_engine_heartbeat_age_seconds"])

    watching = threading.Thread(target=watch_heartbeat)
    watching.start()
    findings = []
    with load("probes", server.served.health_address, seconds=5, services=["ready", "live"]) as prober:
        for index, (title, keywords) in enumerate(MODES):
            findings.append(_streams_at_once(server, count, num_tokens, title, 10 + index, keywords))
            if index == 0:
                probed = result(prober, 60)
    is_over.set()
    watching.join()
    health = probed["seconds"]
    unexpected = {name: number for name, number in probed["statuses"].items() if name != str(SERVING)}
    return [
        *findings,
        Finding("health checks beside the first of them", spread(health), "99th percentile 1 s, always SERVING",
                percentile(health, 99) < 1 and not unexpected),
        Finding("longest pass of the engine that its heartbeat showed", f"{heartbeat:.1f} s", "120 s", heartbeat < 120),
    ]  # fmt: skip


def _streams_at_once(
    server: StartedServer, count: int, num_tokens: int, title: str, seed: int, keywords: dict[str, Any]
) -> Finding:
    timings, seconds = asyncio.run(time_streams(server.served.address, count, num_tokens, seed=seed, **keywords))
    errors = Counter(timing.reason for timing in timings if timing.reason)
    throughput = sum(len(timing.gaps) + 1 for timing in timings) / seconds
    firsts = [timing.first for timing in timings if timing.first]
    return Finding(
        f"{count} streams {title}: tokens a second; between tokens, median / 99th / largest; to the first",
        f"{throughput:,.0f}; {spread(gaps_of(timings))}; {spread(firsts)}" + (f"; {dict(errors)}" if errors else ""),
        "no errors",
        not errors,
    )


def over_the_limits(server: StartedServer) -> list[Finding]:
    """Requests beyond the server's limits must be rejected with the limit in the message."""

    async def outcomes() -> list[str]:
        async with AsyncClient(server.served.address, retry=None) as client:
            info = await client.server_info()
            max_tokens = info.limits.max_prompt_tokens
            messages = []
            for call in (
                client.explain(random_prompt(max_tokens + 1, 0), max_new_tokens=1),
                client.explain(random_prompt(max_tokens - 10, 0), max_new_tokens=1000),
                client.attribute(random_prompt(max_tokens - 600, 0), completion_ids=[5] * 512, method="saliency"),
            ):
                try:
                    await call
                    messages.append("accepted")
                except GradellmError as error:
                    messages.append(f"{type(error).__name__}: {str(error)[:150]}")
            return messages

    titles = ("a prompt that is too long", "a completion that is too long", "a method that needs too much memory")
    return [
        Finding(title, message, "refused with the limit", message.startswith("InvalidRequestError"))
        for title, message in zip(titles, asyncio.run(outcomes()), strict=True)
    ]
