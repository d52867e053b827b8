"""Many requests: throughput, admission of a long prompt during decoding, prefix reuse, and memory."""

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
SHORT_PROMPT = 128  # tokens of a prompt whose length is not the subject of a measurement
LONG_PROMPT = 1500  # tokens of the prompt that is admitted while other requests decode
WARM_TOKENS = 16  # tokens of each running stream before it is submitted
FIRST_TURN, SECOND_TURN = 1000, 30  # tokens of a conversation's first turn, and tokens that its second turn adds
REQUEST_PROMPT, REQUEST_TOKENS = 16, 4  # tokens of each of the many short requests


@dataclass(frozen=True)
class Throughput:
    """Streams of one backend that decode in one batch.

    Attributes:
        backend: the backend's name.
        prompt_tokens: tokens of each prompt.
        streams: number of streams.
        tokens_per_second: of all streams, after all prefills.
        gap: median milliseconds between a stream's tokens.
        floor: upper bound of tokens per second by memory bandwidth (`Backend.floor`).
    """

    backend: str
    prompt_tokens: int
    streams: int
    tokens_per_second: float
    gap: float
    floor: float


def throughputs(
    bench_model: BenchModel,
    backends: Sequence[Backend],
    *,
    prompt_lengths: Sequence[int],
    concurrency: Sequence[int],
    new_tokens: int,
    rounds: int,
    bandwidth: float,
    progress: Progress,
) -> Iterator[list[Throughput]]:
    """The median round of every backend at every number of streams; a list for each prompt length."""
    rng = Random(1)  # noqa: S311 (prompts are no secrets)
    fast = [backend for backend in backends if not backend.is_slow]
    for length in prompt_lengths:
        medians: list[Throughput] = []
        for count in concurrency:
            results: dict[str, list[Throughput]] = {backend.name: [] for backend in fast}
            for round_number in range(-1, rounds):  # the first warms up
                for backend in fast:
                    progress(f"{count} streams, {length} tokens, round {round_number + 1} of {rounds}: {backend.name}")
                    prompts = [bench_model.prompt(rng, length) for _ in range(count)]
                    timelines = backend.run(bench_model, prompts, new_tokens)
                    floor = backend.floor(bench_model, length + new_tokens // 2, count, bandwidth) or 0.0
                    gaps = [gap for timeline in timelines for gap in timeline.gaps]
                    speed, gap = tokens_per_second(timelines), 1e3 * statistics.median(gaps)
                    result = Throughput(backend.name, length, count, speed, gap, count / floor)
                    results[backend.name] += [result] if round_number >= 0 else []
            medians += [_median_by(measured, lambda result: result.tokens_per_second) for measured in results.values()]
        yield medians


def tokens_per_second(timelines: Sequence[Timeline]) -> float:
    """Of all streams, from the end of the last prefill; without the first tokens where the prefill's end is unknown."""
    start = max(each.tokens[0] if each.read is None else each.read for each in timelines)
    count = sum(len(each.tokens) - (each.read is None) for each in timelines)
    return count / (max(each.end for each in timelines) - start)


@dataclass(frozen=True)
class Admission:
    """Running streams while a long prompt is admitted.

    Attributes:
        streams: number of running streams.
        prompt_tokens: tokens of the long prompt.
        median_gap: milliseconds between a running stream's tokens before the long prompt is submitted.
        largest_gap: the largest gap during its prefill.
        first_token: its time to first token, in milliseconds.
    """

    streams: int
    prompt_tokens: int
    median_gap: float
    largest_gap: float
    first_token: float

    @property
    def stretch(self) -> float:
        """Largest gap relative to the median gap."""
        return self.largest_gap / self.median_gap


def admission(bench_model: BenchModel, *, streams: int, new_tokens: int, rounds: int) -> Admission:
    """Submit a long prompt while explained streams decode; the median round by `stretch`.

    Raises:
        RuntimeError: if the streams end before the long prompt's prefill.
    """
    rng = Random(2)  # noqa: S311 (prompts are no secrets)
    return _median_by(
        [_admission(bench_model, rng, streams, new_tokens) for _ in range(rounds)], lambda result: result.stretch
    )


def _admission(bench_model: BenchModel, rng: Random, streams: int, new_tokens: int) -> Admission:
    settings = AttributionSettings()
    num_slots = streams * (SHORT_PROMPT + new_tokens) + LONG_PROMPT + 1
    engine = bench_model.engine(max_running=streams + 1, num_tokens=num_slots)
    running = new_requests(
        engine, [bench_model.prompt(rng, SHORT_PROMPT) for _ in range(streams)], new_tokens, settings
    )
    (late,) = new_requests(engine, [bench_model.prompt(rng, LONG_PROMPT)], 1, settings)
    submitted_at: float | None = None

    def submit_late(watch: Stopwatch, timelines: Sequence[Timeline]) -> None:
        nonlocal submitted_at
        if submitted_at is None and len(timelines[0].tokens) >= WARM_TOKENS:
            engine.scheduler.submit(late)
            submitted_at = watch()

    *timelines, late_timeline = run_streams(engine, [*running, late], submit_late, submitted=streams)
    first_token = late_timeline.first_token
    if submitted_at is None or any(timeline.end < first_token for timeline in timelines):
        raise RuntimeError(f"streams of {new_tokens} tokens end before the prefill of {LONG_PROMPT} tokens")
    gaps = [(end, 1e3 * (end - start)) for timeline in timelines for start, end in pairwise(timeline.tokens)]
    before = [gap for end, gap in gaps if end < submitted_at]
    in_prefill = [gap for end, gap in gaps if end >= submitted_at and end - gap / 1e3 <= first_token]
    return Admission(
        streams, LONG_PROMPT, statistics.median(before), max(in_prefill), 1e3 * (first_token - submitted_at)
    )


@dataclass(frozen=True)
class Reuse:
    """Prefix reuse in a conversation of two turns.

    Attributes:
        first_tokens: prompt tokens of the first turn.
        second_tokens: prompt tokens of the second turn, which begins with the first turn and its completion.
        reused_tokens: tokens of the second prompt found in the prefix cache.
        first: time to first token of the first turn, in milliseconds.
        second: of the second turn.
    """

    first_tokens: int
    second_tokens: int
    reused_tokens: int
    first: float
    second: float


def reuse(bench_model: BenchModel, *, new_tokens: int, rounds: int) -> Reuse:
    """Two explained turns of a conversation; the median round by the ratio of both times, after a warm-up."""
    rng = Random(3)  # noqa: S311 (prompts are no secrets)
    turns = [_reuse(bench_model, rng, new_tokens) for _ in range(rounds + 1)][1:]
    return _median_by(turns, lambda turn: turn.second / turn.first)


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
    """Memory in bytes: resident set size of the process on a CPU, allocated tensors on a GPU.

    Attributes:
        peak: peak for one stream, by mode; empty on a CPU without Linux's peak counter.
        idle: before any stream, with all pages of the KV cache touched.
        requests: number of short requests, served 16 at a time.
        before: before these requests, after a warm-up.
        after: after them.
    """

    peak: dict[str, int]
    idle: int
    requests: int
    before: int
    after: int


def memory(
    bench_model: BenchModel, *, prompt_tokens: int, new_tokens: int, requests: int, progress: Progress
) -> Memory:
    """Peak memory of one stream, and memory before and after many short requests."""
    rng = Random(4)  # noqa: S311 (prompts are no secrets)
    engine = bench_model.engine(max_running=16, num_tokens=max(prompt_tokens + new_tokens, 4096))
    bench_model.loaded.runner.pool.touch()  # else a page of the KV cache counts from its first use
    idle, peak = _in_use(bench_model.device), {}
    for mode, attribution in STREAM_MODES.items() if _has_peak_counter(bench_model.device) else ():
        progress(f"peak memory: {mode}")
        for is_warm in (False, True):  # the first run allocates buffers that stay
            if is_warm:
                _reset_peak(bench_model.device)
            run_streams(engine, new_requests(engine, [bench_model.prompt(rng, prompt_tokens)], new_tokens, attribution))
        peak[mode] = _peak(bench_model.device)

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


def _has_peak_counter(device: torch.device) -> bool:
    return device.type == "cuda" or _CLEAR_REFS.exists()


Result = TypeVar("Result")


def _median_by(results: Sequence[Result], key: Callable[[Result], float]) -> Result:
    """The result whose key is the (lower) median."""
    return sorted(results, key=key)[(len(results) - 1) // 2]


def _reset_peak(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _CLEAR_REFS.write_text("5")  # resets VmHWM, the peak resident set size


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * int(_STATUS.read_text().split("VmHWM:")[1].split()[0])


def _in_use(device: torch.device) -> int:
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
