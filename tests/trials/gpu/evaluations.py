"""An evaluation alone, and what interactive streams notice of one."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from gradellm import AsyncClient
from trials.gpu.server import StartedServer
from trials.gpu.streams import PROMPT, gaps_of, random_prompt, time_stream
from trials.report import Finding, percentile

MAX_RATIO = 1.5  # of a gap with an evaluation, relative to one without
DEFAULTS: dict[str, Any] = {"max_new_tokens": 32, "methods": ["grad_ellm", "knockout", "random"]}


@dataclass
class Gaps:
    """Gaps of interactive streams without and with an evaluation, and the evaluation's items meanwhile."""

    without: list[float] = field(default_factory=list)
    with_evaluation: list[float] = field(default_factory=list)
    items: int = 0


def evaluations(server: StartedServer, num_tokens: int, rounds: int, **options: Any) -> list[Finding]:
    """Items a second of an evaluation alone, and gaps of 1 and 8 explained streams with an evaluation."""
    address, options = server.served.address, {**DEFAULTS, **options}
    asyncio.run(_evaluate_alone(address, options))  # warms up: the scheduler learns how long passes take
    count, seconds = asyncio.run(_evaluate_alone(address, options))
    findings = [Finding("an evaluation alone: items a second", f"{count / seconds:.1f} ({count} in {seconds:.1f} s)")]
    for streams in (1, 8):
        gaps = asyncio.run(_gaps_with_evaluation(address, streams, num_tokens, rounds, options))
        findings.append(_finding(streams, gaps))
    return findings


async def _evaluate_alone(address: str, options: dict[str, Any]) -> tuple[int, float]:
    """Items of one evaluation, and seconds."""
    async with AsyncClient(address, retry=None) as client:
        start, count = time.perf_counter(), 0
        async for event in client.evaluate_events(random_prompt(PROMPT, 1), **options):
            count += event.item is not None
        return count, time.perf_counter() - start


async def _gaps_with_evaluation(
    address: str, streams: int, num_tokens: int, rounds: int, options: dict[str, Any]
) -> Gaps:
    """Gaps of `streams` streams, alternately without and with an evaluation."""
    gaps = Gaps()

    async def evaluate(client: AsyncClient, seed: int) -> None:
        while True:
            async for event in client.evaluate_events(random_prompt(PROMPT, seed), stride=1, **options):
                gaps.items += event.item is not None

    async def stream_gaps(client: AsyncClient, seed: int) -> list[float]:
        prompts = [random_prompt(PROMPT, 100 * seed + i) for i in range(streams)]
        return gaps_of(
            await asyncio.gather(*(time_stream(client, prompt, num_tokens, attribution="paper") for prompt in prompts))
        )

    async with AsyncClient(address, retry=None) as client:
        for turn in range(-1, rounds):  # the first turn warms up
            without = await stream_gaps(client, 50 + 2 * turn)
            evaluating = asyncio.create_task(evaluate(client, turn + 7))
            await asyncio.sleep(0.5)  # until it runs
            with_evaluation = await stream_gaps(client, 51 + 2 * turn)
            evaluating.cancel()
            await asyncio.gather(evaluating, return_exceptions=True)
            if turn >= 0:
                gaps.without += without
                gaps.with_evaluation += with_evaluation
    return gaps


def _finding(streams: int, gaps: Gaps) -> Finding:
    means = statistics.mean(gaps.without), statistics.mean(gaps.with_evaluation)
    tails = percentile(gaps.without, 99), percentile(gaps.with_evaluation, 99)
    ratios = means[1] / means[0], tails[1] / tails[0]
    return Finding(
        f"gaps of {streams} explained stream{'s' * (streams > 1)} without and with an evaluation beside: mean; "
        "99th percentile",
        f"{1e3 * means[0]:.2f} and {1e3 * means[1]:.2f} ms, {ratios[0]:.2f} times; "
        f"{1e3 * tails[0]:.2f} and {1e3 * tails[1]:.2f} ms, {ratios[1]:.2f} times; "
        f"of {len(gaps.with_evaluation):,}; {gaps.items} items meanwhile",
        "1.5 times",
        max(ratios) <= MAX_RATIO,
    )
