"""Streams by the SDK and their timing."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from gradellm import AsyncClient, GradellmError
from trials.report import percentile

CALL_SECONDS = 120.0
PROMPT, LONG_PROMPT = 128, 1024  # tokens
VOCABULARY = 1000  # words of the random model that prompts are made of


@dataclass
class StreamTiming:
    """Timing of one stream, in seconds.

    Attributes:
        first: to the first token; None where none came.
        gaps: between tokens.
        lags: from a token to its scores.
        reason: why the stream failed; empty where it finished.
        seconds: to its end.
    """

    first: float | None = None
    gaps: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    reason: str = ""
    seconds: float = 0.0


def random_prompt(num_tokens: int, seed: int) -> str:
    """A prompt for the random model, whose tokenizer has a word a token."""
    rng = random.Random(seed)
    return " ".join(f"w{rng.randint(1, VOCABULARY)}" for _ in range(num_tokens))


async def time_stream(client: AsyncClient, prompt: str, num_tokens: int, **keywords: Any) -> StreamTiming:
    """Read one stream to its end."""
    timing, times = StreamTiming(), [time.perf_counter()]
    try:
        async for event in client.generate(prompt, max_new_tokens=num_tokens, timeout=CALL_SECONDS, seed=1, **keywords):
            if event.token is not None:
                times.append(time.perf_counter())
            elif event.attribution is not None:
                timing.lags.append(time.perf_counter() - times[event.attribution.token_index + 1])
    except GradellmError as error:
        timing.reason = error.reason or type(error).__name__
    timing.seconds = time.perf_counter() - times[0]
    if len(times) > 1:
        timing.first = times[1] - times[0]
        timing.gaps = [after - before for before, after in pairwise(times[1:])]
    return timing


async def time_streams(
    address: str, count: int, num_tokens: int, prompt_tokens: int = PROMPT, seed: int = 0, **keywords: Any
) -> tuple[list[StreamTiming], float]:
    """Timings of `count` streams at once, each with its own prompt; and seconds from first token to last end."""
    async with AsyncClient(address, retry=None) as client:
        start = time.perf_counter()
        timings = await asyncio.gather(
            *(
                time_stream(client, random_prompt(prompt_tokens, 1000 * seed + i), num_tokens, **keywords)
                for i in range(count)
            )
        )
        first = min((timing.first or 0.0 for timing in timings), default=0.0)
        return list(timings), time.perf_counter() - start - first


def gaps_of(timings: Sequence[StreamTiming]) -> list[float]:
    """The gaps of all streams."""
    return [gap for timing in timings for gap in timing.gaps]


def milliseconds(seconds: float) -> str:
    """As text."""
    return f"{1e3 * seconds:.1f} ms"


def spread(values: Sequence[float]) -> str:
    """Median, 99th percentile and largest of some seconds, as text in milliseconds."""
    if not values:
        return "none"
    figures = (statistics.median(values), percentile(values, 99), max(values))
    return " / ".join(f"{1e3 * figure:.1f}" for figure in figures) + " ms"
