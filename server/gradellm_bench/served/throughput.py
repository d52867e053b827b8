"""Many requests: throughput, what a long prompt does to those that run, prefix reuse, and memory."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import TypeVar

import psutil
import torch

from gradellm_bench.backends import Backend
from gradellm_bench.models import BenchModel
from gradellm_bench.served.streams import STREAM_MODES, new_requests, run_streams
from gradellm_bench.timeline import Stopwatch, Timeline
from gradellm_engine.params import AttributionSettings

Progress = Callable[[str], None]
SHORT_PROMPT = 128  # tokens of a prompt where its length is not what is measured
LONG_PROMPT = 1500  # of the one that comes in while others run
WARM_TOKENS = 16  # of running streams, before it comes
FIRST_TURN, SECOND_TURN = 1000, 30  # tokens of a conversation's first turn, and of what its second adds
REQUEST_PROMPT, REQUEST_TOKENS = 16, 4  # of the many short requests


@dataclass(frozen=True)
class Throughput:
    """Streams of one way that decode together.

    Attributes:
        way: its name.
        prompt_tokens: tokens of each prompt.
        streams: how many.
        tokens_per_second: of all together, once all prompts are read.
        gap: median milliseconds between a stream's tokens.
        floor: tokens a second if memory were read as often as must be, and nothing else took time.
    """

    way: str
    prompt_tokens: int
    streams: int
    tokens_per_second: float
    gap: float
    floor: float


def throughputs(
    bench_model: BenchModel,
    ways: Sequence[Backend],
    *,
    prompt_lengths: Sequence[int],
    concurrency: Sequence[int],
    new_tokens: int,
    rounds: int,
    bandwidth: float,
    progress: Progress,
) -> Iterator[list[Throughput]]:
    """Every way at every number of streams, a list a prompt length; of the rounds, the one in the middle."""
    rng = Random(1)  # noqa: S311 (prompts are no secrets)
    fast = [way for way in ways if not way.is_slow]
    for length in prompt_lengths:
        middle: list[Throughput] = []
        for count in concurrency:
            results: dict[str, list[Throughput]] = {way.name: [] for way in fast}
            for round_number in range(-1, rounds):  # the first only warms up
                for way in fast:
                    progress(f"{count} streams, {length} tokens, round {round_number + 1} of {rounds}: {way.name}")
                    prompts = [bench_model.prompt(rng, length) for _ in range(count)]
                    timelines = way.run(bench_model, prompts, new_tokens)
                    floor = way.floor(bench_model, length + new_tokens // 2, count, bandwidth) or 0.0
                    gaps = [gap for timeline in timelines for gap in timeline.gaps]
                    speed, gap = tokens_per_second(timelines), 1e3 * statistics.median(gaps)
                    result = Throughput(way.name, length, count, speed, gap, count / floor)
                    results[way.name] += [result] if round_number >= 0 else []
            middle += [_middle(measured, lambda result: result.tokens_per_second) for measured in results.values()]
        yield middle


def tokens_per_second(timelines: Sequence[Timeline]) -> float:
    """Of all together, from when the last prompt was read; where reading it gave the first token, without that one."""
    began = max(its.tokens[0] if its.read is None else its.read for its in timelines)
    count = sum(len(its.tokens) - (its.read is None) for its in timelines)
    return count / (max(its.end for its in timelines) - began)


@dataclass(frozen=True)
class Admission:
    """What running streams notice of a long prompt that comes in.

    Attributes:
        streams: that run.
        prompt_tokens: of the one that comes in.
        median_gap: milliseconds between a running stream's tokens before it comes.
        largest_gap: the largest while it is read.
        first_token: milliseconds that the one that came in waited for its first token.
    """

    streams: int
    prompt_tokens: int
    median_gap: float
    largest_gap: float
    first_token: float

    @property
    def stretch(self) -> float:
        """The largest gap in median ones."""
        return self.largest_gap / self.median_gap


def admission(bench_model: BenchModel, *, streams: int, new_tokens: int, rounds: int) -> Admission:
    """Explained streams run; once they are under way, a long prompt comes in. The middle one of the rounds.

    Raises:
        RuntimeError: where the streams end before the prompt is read.
    """
    rng = Random(2)  # noqa: S311 (prompts are no secrets)
    return _middle([_admission(bench_model, rng, streams, new_tokens) for _ in range(rounds)], lambda its: its.stretch)


def _admission(bench_model: BenchModel, rng: Random, streams: int, new_tokens: int) -> Admission:
    settings = AttributionSettings()
    places = streams * (SHORT_PROMPT + new_tokens) + LONG_PROMPT + 1
    engine = bench_model.engine(max_running=streams + 1, num_tokens=places)
    running = new_requests(
        engine, [bench_model.prompt(rng, SHORT_PROMPT) for _ in range(streams)], new_tokens, settings
    )
    (late,) = new_requests(engine, [bench_model.prompt(rng, LONG_PROMPT)], 1, settings)
    came: float | None = None

    def come(watch: Stopwatch, timelines: Sequence[Timeline]) -> None:
        nonlocal came
        if came is None and len(timelines[0].tokens) >= WARM_TOKENS:
            engine.scheduler.submit(late)
            came = watch()

    *timelines, its = run_streams(engine, [*running, late], come, submitted=streams)
    if came is None or any(timeline.end < its.first_token for timeline in timelines):
        raise RuntimeError(f"streams of {new_tokens} tokens end before a prompt of {LONG_PROMPT} is read")
    gaps = [(end, 1e3 * (end - start)) for timeline in timelines for start, end in pairwise(timeline.tokens)]
    before = [gap for end, gap in gaps if end < came]
    while_read = [gap for end, gap in gaps if end >= came and end - gap / 1e3 <= its.first_token]
    return Admission(streams, LONG_PROMPT, statistics.median(before), max(while_read), 1e3 * (its.first_token - came))


@dataclass(frozen=True)
class Reuse:
    """A conversation's turns.

    Attributes:
        first_tokens: tokens of the first turn's prompt.
        second_tokens: of the second's, which begins with the first turn and its answer.
        reused_tokens: tokens of the second prompt that were not read again.
        first: milliseconds to the first turn's first token.
        second: to the second's.
    """

    first_tokens: int
    second_tokens: int
    reused_tokens: int
    first: float
    second: float


def reuse(bench_model: BenchModel, *, new_tokens: int, rounds: int) -> Reuse:
    """A conversation of two explained turns; the middle one of the rounds, after one that only warms up."""
    rng = Random(3)  # noqa: S311 (prompts are no secrets)
    turns = [_reuse(bench_model, rng, new_tokens) for _ in range(rounds + 1)][1:]
    return _middle(turns, lambda its: its.second / its.first)


def _reuse(bench_model: BenchModel, rng: Random, new_tokens: int) -> Reuse:
    engine = bench_model.engine(max_running=1, num_tokens=2 * (FIRST_TURN + SECOND_TURN + 2 * new_tokens))
    prompt = bench_model.prompt(rng, FIRST_TURN)
    (first,) = run_streams(engine, new_requests(engine, [prompt], new_tokens, AttributionSettings()))
    longer = (*prompt, *first.ids, *bench_model.prompt(rng, SECOND_TURN))
    (second,) = run_streams(engine, new_requests(engine, [longer], new_tokens, AttributionSettings()))
    reused = second.finished.num_reused_tokens if second.finished else 0
    return Reuse(len(prompt), len(longer), reused, 1e3 * first.first_token, 1e3 * second.first_token)


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        peak: at its highest, for one stream of each kind; the whole process on a CPU, what tensors take on a GPU. Empty
            where the system does not tell: on a CPU, it must be Linux.
        idle: before any of them ran, the key-value memory touched.
        requests: short requests that were served one after the other, sixteen at a time.
        before: in use before them, after some had been served.
        after: in use after them.
    """

    peak: dict[str, int]
    idle: int
    requests: int
    before: int
    after: int


def memory(
    bench_model: BenchModel, *, prompt_tokens: int, new_tokens: int, requests: int, progress: Progress
) -> Memory:
    """Peaks of one stream, and what many requests leave behind."""
    rng = Random(4)  # noqa: S311 (prompts are no secrets)
    engine = bench_model.engine(max_running=16, num_tokens=max(prompt_tokens + new_tokens, 4096))
    bench_model.loaded.runner.pool.touch()  # else a place counts from when it is first used
    idle, peak = _in_use(bench_model.device), {}
    for kind, attribution in STREAM_MODES.items() if _tells_peak(bench_model.device) else ():
        progress(f"peak memory: {kind}")
        for is_warm in (False, True):  # the first run makes buffers that stay
            if is_warm:
                _reset_peak(bench_model.device)
            run_streams(engine, new_requests(engine, [bench_model.prompt(rng, prompt_tokens)], new_tokens, attribution))
        peak[kind] = _peak(bench_model.device)

    def serve(count: int) -> None:
        for start in range(0, count, 16):
            prompts = [bench_model.prompt(rng, REQUEST_PROMPT) for _ in range(min(16, count - start))]
            run_streams(engine, new_requests(engine, prompts, REQUEST_TOKENS, AttributionSettings()))

    progress(f"{requests} short requests")
    serve(min(requests, 64))
    before = _in_use(bench_model.device)
    serve(requests)
    return Memory(peak, idle, requests, before, _in_use(bench_model.device))


_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def _tells_peak(device: torch.device) -> bool:
    return device.type == "cuda" or _CLEAR_REFS.exists()


Result = TypeVar("Result")


def _middle(results: Sequence[Result], key: Callable[[Result], float]) -> Result:
    """The one whose key is the median."""
    return sorted(results, key=key)[(len(results) - 1) // 2]


def _reset_peak(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _CLEAR_REFS.write_text("5")  # Linux forgets the highest resident size


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * int(_STATUS.read_text().split("VmHWM:")[1].split()[0])


def _in_use(device: torch.device) -> int:
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
