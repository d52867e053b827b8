"""Mixed traffic over a long time: the server's memory must stay flat."""

from __future__ import annotations

import statistics
import time

from trials.report import Finding
from trials.serving import MIB, SERVING, load, result, served


def soak(minutes: float) -> list[Finding]:
    """Calls of every kind on 8 streams, some of them cancelled or malformed."""
    seconds = 60.0 * minutes
    samples: list[tuple[float, int]] = []
    with served() as server, load("mixed", server.address, seconds=seconds, streams=8) as process:
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            time.sleep(min(2.0, seconds / 20))
            samples.append((time.monotonic() - start, server.memory_bytes))
        outcome = result(process, 180)
        is_live = server.health("live") == SERVING
    later = [memory for at, memory in samples if at >= min(60.0, seconds / 2)]
    tenth = max(1, len(later) // 10)
    first, last = statistics.mean(later[:tenth]), statistics.mean(later[-tenth:])
    growth = last / first - 1
    calls = ", ".join(f"{number:,} {name}" for name, number in outcome["codes"].items())
    return [
        Finding("traffic", f"{minutes:g} minutes: {calls}; malformed: {outcome['malformed']}"),
        Finding("memory, first minute to end", f"{growth:+.2%} of {first / MIB:.0f} MiB", "flat, within 2%",
                abs(growth) <= 0.02),
        Finding("streams that did not finish", str(outcome["unfinished"]), "none",
                outcome["unfinished"] == 0 and is_live),
    ]  # fmt: skip
