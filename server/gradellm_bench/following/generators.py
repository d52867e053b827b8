"""How many generators an explainer follows: tokens a second explained, over those that the same machine decodes.

A generator under load decodes many streams in one pass, which reads the weights once for all of them; an explainer
reads and explains chunks of all streams together. Both run one right after the other in each round; the ratio is the
number of equal generators that one explainer keeps up with.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gradellm_bench.capacity.report import markdown
from gradellm_engine import (
    AttributionSettings,
    Engine,
    FollowedRequest,
    FollowSettings,
    GradEllm,
    NumberFormat,
    Request,
    Sampling,
)

FOLLOW = FollowSettings(upstream_dtype=NumberFormat.FLOAT32)


@dataclass(frozen=True)
class Rate:
    """Tokens a second with so many streams at once, decoded plainly and followed; medians over rounds.

    Attributes:
        streams: completions at once.
        decoded: tokens a second, plain.
        followed: tokens a second, explained.
        generators: the median of their ratios.
    """

    streams: int
    decoded: float
    followed: float
    generators: float


def follow_rates(
    engine: Engine, prompt: str, *, streams: Sequence[int], num_tokens: int, chunk_size: int, rounds: int
) -> list[Rate]:
    """Measure each number of streams, after a round to warm up."""
    ids = [step.id for step in engine.generate(prompt, Sampling(max_new_tokens=num_tokens))]
    found = []
    for count in streams:
        measured = []
        for turn in range(rounds + 1):
            pair = (
                decoded_rate(engine, prompt, count, num_tokens),
                followed_rate(engine, prompt, count, ids, chunk_size),
            )
            if turn:
                measured.append(pair)
        decoded, followed = zip(*measured, strict=True)
        ratios = [theirs / ours for ours, theirs in measured]
        found.append(Rate(count, *map(statistics.median, (decoded, followed, ratios))))
    return found


def explained(engine: Engine, chunk_size: int | None = None) -> AttributionSettings:
    """The default preset, in chunks of this size."""
    return AttributionSettings(GradEllm.preset(engine.concrete_preset("recommended")), chunk_size=chunk_size)


def decoded_rate(engine: Engine, prompt: str, streams: int, num_tokens: int) -> float:
    """Tokens a second of `streams` plain completions in one batch, once their prompts are read."""
    sampling = Sampling(max_new_tokens=num_tokens)
    requests = [engine.generation_request(f"{number} {prompt}", sampling) for number in range(streams)]
    _read_prompts(engine, requests)
    before, began = sum(request.num_tokens for request in requests), time.perf_counter()
    _run(engine, lambda: all(request.is_closed for request in requests))
    tokens = sum(request.num_tokens for request in requests) - before
    return tokens / (time.perf_counter() - began)


def followed_rate(engine: Engine, prompt: str, streams: int, ids: Sequence[int], chunk_size: int) -> float:
    """Tokens a second of `streams` followed completions, a chunk of each at a time, once their prompts are read."""
    attribution = explained(engine, chunk_size)
    requests: list[FollowedRequest] = [
        engine.follow_request(f"{number} {prompt}", attribution, FOLLOW) for number in range(streams)
    ]
    _read_prompts(engine, requests)
    began = time.perf_counter()
    for first in range(0, len(ids), chunk_size):
        for request in requests:
            engine.scheduler.append(request, ids[first : first + chunk_size])
        _run(engine, lambda: not engine.scheduler.has_work())
    for request in requests:
        engine.scheduler.finish(request)
    _run(engine, lambda: all(request.is_closed for request in requests))
    return streams * len(ids) / (time.perf_counter() - began)


def _read_prompts(engine: Engine, requests: Sequence[Request]) -> None:
    for request in requests:
        engine.scheduler.submit(request)
    engine.scheduler.admit()
    while any(request.num_prefill_left for request in requests):
        list(engine.scheduler.step(lambda request: bool(request.num_prefill_left)))


def _run(engine: Engine, is_done: Callable[[], bool]) -> None:
    while not is_done():
        list(engine.scheduler.step())


def generators_table(rates: Sequence[Rate]) -> str:
    """A row for each number of streams."""
    rows = [
        [str(each.streams), f"{each.decoded:.0f}", f"{each.followed:.0f}", f"{each.generators:.2f}"] for each in rates
    ]
    return markdown(["streams", "decoded, tokens/s", "followed, tokens/s", "generators"], rows)
