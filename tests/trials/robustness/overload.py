"""More load than a server can take, and a client that does not read its stream."""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from typing import Any

from trials.report import Finding, percentile
from trials.serving import SERVING, load, result, served


def overload(scale: float) -> list[Finding]:
    """Offer four times the load that the server can take; excess requests must be rejected fast."""
    seconds = max(10.0, 60.0 * scale)
    with served() as server:
        with load("closed", server.address, streams=24, seconds=10) as process:
            capacity = result(process, 60)["codes"]["OK"] / 10
        with (
            load("probes", server.address, seconds=seconds, services=["ready", "live"]) as prober,
            load("open", server.address, rate=4 * capacity, seconds=seconds) as generator,
        ):
            offered = result(generator, seconds + 180)
            probed = result(prober, 60)
        is_alive = server.health("live") == SERVING
    health = percentile(probed["seconds"], 99)
    rejection = percentile(offered["rejection_seconds"], 99)
    codes = offered["codes"]
    unexpected = {name: number for name, number in codes.items() if name not in ("OK", "RESOURCE_EXHAUSTED")}
    return [
        Finding("load", f"{4 * capacity:.0f} streams a second for {seconds:.0f} s, 4 times the server's capacity"),
        Finding("streams", ", ".join(f"{number:,} {name}" for name, number in codes.items())),
        Finding("health check, 99th percentile", f"{health * 1000:.0f} ms of {len(probed['seconds'])}", "1 s",
                health < 1),
        Finding("health statuses other than SERVING", str(len(probed["statuses"]) - 1), "none",
                is_alive and set(probed["statuses"]) == {str(SERVING)}),
        Finding("admitted and not finished", str(offered["unfinished"]), "none",
                offered["unfinished"] == 0 and not unexpected),
        Finding("rejection, 99th percentile",
                f"{rejection * 1000:.0f} ms (median {1000 * percentile(offered['rejection_seconds'], 50):.0f} ms)",
                "100 ms", rejection < 0.1),
    ]  # fmt: skip


def unread(scale: float) -> list[Finding]:
    """The token gaps of four streams: alone, with a client that never reads, and with a client that does."""
    rounds, seconds, lead_seconds = max(2, round(6 * scale)), 6.0, 4.0
    neighbours: dict[str, tuple[str, dict[str, Any]] | None] = {
        "alone": None,
        "never": ("unread", {"small_window": True}),
        "ahead": ("unread", {"small_window": False}),
        "reads": ("closed", {"streams": 1, "tokens": 450}),
    }
    gaps: dict[str, list[float]] = {kind: [] for kind in neighbours}
    with served() as server:
        for _ in range(rounds):
            for kind, neighbour in neighbours.items():
                with ExitStack() as stack:
                    if neighbour is not None:
                        name, options = neighbour
                        stack.enter_context(load(name, server.address, seconds=seconds + lead_seconds + 4, **options))
                    time.sleep(lead_seconds)
                    streams = stack.enter_context(
                        load("closed", server.address, streams=4, seconds=seconds, tokens=100)
                    )
                    gaps[kind] += result(streams, 60)["gaps"]
    medians = {kind: statistics.median(samples) for kind, samples in gaps.items()}

    def shown(kind: str) -> str:
        return f"{medians[kind] * 1000:.1f} ms, {medians[kind] / medians['alone'] - 1:+.0%}"

    return [
        Finding("median gap of 4 streams", f"{medians['alone'] * 1000:.1f} ms, of {len(gaps['alone']):,}"),
        Finding("beside a client that never reads", shown("never"), "+20%", medians["never"] <= 1.2 * medians["alone"]),
        Finding("beside a client whose gRPC library reads ahead", shown("ahead")),
        Finding("beside a client that reads", shown("reads")),
    ]
