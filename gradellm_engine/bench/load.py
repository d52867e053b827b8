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

from gradellm_engine.bench.subject import Subject
from gradellm_engine.bench.timeline import Stopwatch, Timeline
from gradellm_engine.bench.ways import chunked, note, sampling
from gradellm_engine.engine import Engine
from gradellm_engine.prompts import PromptInput
from gradellm_engine.settings import AttributionSettings
from gradellm_engine.stream import Phase, Stream

Progress = Callable[[str], None]
STREAM_KINDS: dict[str, AttributionSettings | None] = {
    "plain": None,
    "per_token": AttributionSettings(),
    "chunked(16)": chunked(16),
    "chunked(32)": chunked(32),
}
SHORT_PROMPT = 128  # tokens of a prompt where its length is not what is measured
LONG_PROMPT = 1500  # of the one that comes in while others run
WARM_TOKENS = 16  # of running streams, before it comes
FIRST_TURN, SECOND_TURN = 1000, 30  # tokens of a conversation's first turn, and of what its second adds
REQUEST_PROMPT, REQUEST_TOKENS = 16, 4  # of the many short requests


@dataclass(frozen=True)
class Throughput:
    """Streams of one kind that decode together.

    Attributes:
        kind: of `STREAM_KINDS`.
        streams: how many.
        tokens_per_second: of all together, once all prompts are read.
        gap: median milliseconds between a stream's tokens.
    """

    kind: str
    streams: int
    tokens_per_second: float
    gap: float


def throughputs(
    subject: Subject, *, concurrency: Sequence[int], new_tokens: int, rounds: int, progress: Progress
) -> Iterator[Throughput]:
    """Every kind at every number of streams; of the rounds, the one whose throughput is the median."""
    rng = Random(1)  # noqa: S311 (prompts are no secrets)
    for count in concurrency:
        results: dict[str, list[Throughput]] = {kind: [] for kind in STREAM_KINDS}
        for round_number in range(-1, rounds):  # the first only warms up
            for kind, attribution in STREAM_KINDS.items():
                progress(f"{count} streams, round {round_number + 1} of {rounds}: {kind}")
                prompts = [subject.prompt(rng, SHORT_PROMPT) for _ in range(count)]
                engine = subject.engine(max_running=count, num_tokens=count * (SHORT_PROMPT + new_tokens))
                timelines = _run(engine, _streams(engine, prompts, new_tokens, attribution), decode_together=True)
                seconds = max(t.end for t in timelines) - max(t.read or 0.0 for t in timelines)
                gaps = [gap for timeline in timelines for gap in timeline.gaps]
                result = Throughput(kind, count, count * new_tokens / seconds, 1e3 * statistics.median(gaps))
                results[kind] += [result] if round_number >= 0 else []
        for measured in results.values():
            yield _middle(measured, lambda result: result.tokens_per_second)


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


def admission(subject: Subject, *, streams: int, new_tokens: int, rounds: int) -> Admission:
    """Explained streams run; once they are under way, a long prompt comes in. The middle one of the rounds.

    Raises:
        RuntimeError: where the streams end before the prompt is read.
    """
    rng = Random(2)  # noqa: S311 (prompts are no secrets)
    return _middle([_admission(subject, rng, streams, new_tokens) for _ in range(rounds)], lambda its: its.stretch)


def _admission(subject: Subject, rng: Random, streams: int, new_tokens: int) -> Admission:
    settings = AttributionSettings()
    places = streams * (SHORT_PROMPT + new_tokens) + LONG_PROMPT + 1
    engine = subject.engine(max_running=streams + 1, num_tokens=places)
    running = _streams(engine, [subject.prompt(rng, SHORT_PROMPT) for _ in range(streams)], new_tokens, settings)
    (late,) = _streams(engine, [subject.prompt(rng, LONG_PROMPT)], 1, settings)
    came: float | None = None

    def come(watch: Stopwatch, timelines: Sequence[Timeline]) -> None:
        nonlocal came
        if came is None and len(timelines[0].tokens) >= WARM_TOKENS:
            engine.scheduler.submit(late)
            came = watch()

    *timelines, its = _run(engine, [*running, late], come, submitted=streams)
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


def reuse(subject: Subject, *, new_tokens: int, rounds: int) -> Reuse:
    """A conversation of two explained turns; the middle one of the rounds, after one that only warms up."""
    rng = Random(3)  # noqa: S311 (prompts are no secrets)
    turns = [_reuse(subject, rng, new_tokens) for _ in range(rounds + 1)][1:]
    return _middle(turns, lambda its: its.second / its.first)


def _reuse(subject: Subject, rng: Random, new_tokens: int) -> Reuse:
    engine = subject.engine(max_running=1, num_tokens=2 * (FIRST_TURN + SECOND_TURN + 2 * new_tokens))
    prompt = subject.prompt(rng, FIRST_TURN)
    (first,) = _run(engine, _streams(engine, [prompt], new_tokens, AttributionSettings()))
    longer = (*prompt, *first.ids, *subject.prompt(rng, SECOND_TURN))
    (second,) = _run(engine, _streams(engine, [longer], new_tokens, AttributionSettings()))
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


def memory(subject: Subject, *, prompt_tokens: int, new_tokens: int, requests: int, progress: Progress) -> Memory:
    """Peaks of one stream, and what many requests leave behind."""
    rng = Random(4)  # noqa: S311 (prompts are no secrets)
    engine = subject.engine(max_running=16, num_tokens=max(prompt_tokens + new_tokens, 4096))
    subject.loaded.decoder.pool.touch()  # else a place counts from when it is first used
    idle, peak = _in_use(subject.device), {}
    for kind, attribution in STREAM_KINDS.items() if _tells_peak(subject.device) else ():
        progress(f"peak memory: {kind}")
        for is_warm in (False, True):  # the first run makes buffers that stay
            if is_warm:
                _reset_peak(subject.device)
            _run(engine, _streams(engine, [subject.prompt(rng, prompt_tokens)], new_tokens, attribution))
        peak[kind] = _peak(subject.device)

    def serve(count: int) -> None:
        for start in range(0, count, 16):
            prompts = [subject.prompt(rng, REQUEST_PROMPT) for _ in range(min(16, count - start))]
            _run(engine, _streams(engine, prompts, REQUEST_TOKENS, AttributionSettings()))

    progress(f"{requests} short requests")
    serve(min(requests, 64))
    before = _in_use(subject.device)
    serve(requests)
    return Memory(peak, idle, requests, before, _in_use(subject.device))


def _streams(
    engine: Engine, prompts: Sequence[tuple[int, ...]], new_tokens: int, attribution: AttributionSettings | None
) -> list[Stream]:
    return [engine.stream(PromptInput(prompt_ids=prompt), sampling(new_tokens), attribution) for prompt in prompts]


def _run(
    engine: Engine,
    streams: Sequence[Stream],
    between: Callable[[Stopwatch, Sequence[Timeline]], None] = lambda watch, timelines: None,
    *,
    submitted: int | None = None,
    decode_together: bool = False,
) -> list[Timeline]:
    """Run streams to their end.

    Args:
        engine: runs them.
        streams: requests.
        between: called after every tick.
        submitted: so many come in at once, the others when `between` submits them; all by default.
        decode_together: whether none decodes before all prompts are read.
    """
    timelines = [Timeline() for _ in streams]
    for stream in streams[:submitted]:
        engine.scheduler.submit(stream)
    watch = Stopwatch()
    while not all(stream.is_closed for stream in streams):
        is_reading = decode_together and any(stream.phase in (Phase.WAITING, Phase.PREFILL) for stream in streams)
        for _ in engine.scheduler.tick(_is_reading if is_reading else _is_any):
            now = watch()
            for timeline, stream in zip(timelines, streams, strict=True):
                note(timeline, stream, now)
        between(watch, timelines)
    for timeline, stream in zip(timelines, streams, strict=True):
        note(timeline, stream, watch())
    return timelines


_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def _tells_peak(device: torch.device) -> bool:
    return device.type == "cuda" or _CLEAR_REFS.exists()


def _is_reading(stream: Stream) -> bool:
    return stream.phase is Phase.PREFILL


def _is_any(stream: Stream) -> bool:
    return True


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
