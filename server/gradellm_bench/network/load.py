"""Streams against a server: all at once, or as a Poisson process, each read by a thread of its own."""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Self, TypeVar

import numpy as np

from gradellm_bench.network.servers import StreamRefusedError

PromptT = TypeVar("PromptT")

WORDS = (
    "a red fox", "the old king", "two ships", "some bread", "a tall tower", "many birds", "a lazy cat", "the queen",
    "a green door", "seven hills", "a warm fire", "the small boat", "a silver coin", "an apple tree", "the tired horse",
    "a letter", "three brothers", "a garden", "the dark wood", "a brown bear", "the north wind", "a wooden bridge",
)  # fmt: skip


@dataclass
class StreamRecord:
    """One stream, in seconds from the start of the run.

    Attributes:
        sent: when the request was sent.
        tokens: when each token arrived.
        ended: when the stream ended; None before.
        error: what it failed with, if it did.
        is_refused: whether the server's queue was full.
    """

    sent: float
    tokens: list[float] = field(default_factory=list)
    ended: float | None = None
    error: str | None = None
    is_refused: bool = False

    @property
    def first_token(self) -> float:
        """Seconds from sending to the first token."""
        return self.tokens[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens."""
        return [after - before for before, after in pairwise(self.tokens)]


def _served(records: Sequence[StreamRecord]) -> list[StreamRecord]:
    """The streams that ended well, with a token or more."""
    return [record for record in records if record.error is None and record.tokens]


@dataclass(frozen=True)
class RunSummary:
    """The figures of one run.

    Attributes:
        tokens_per_second: all streams' tokens, over the time from the first request to the last token.
        token_ms: milliseconds a token, after the first: the median over streams of each one's mean.
        first_token_ms: median over streams.
        last_first_token_ms: from the start of the run to the last stream's first token.
        max_gap_ms: largest gap between tokens of a stream.
        num_tokens: of all streams.
        num_failed: streams that ended with an error.
    """

    tokens_per_second: float
    token_ms: float
    first_token_ms: float
    last_first_token_ms: float
    max_gap_ms: float
    num_tokens: int
    num_failed: int

    @classmethod
    def of(cls, records: Sequence[StreamRecord]) -> RunSummary:
        """Summarise streams; at least one must have two tokens."""
        served = _served(records)
        tokens = [token for record in served for token in record.tokens]
        gaps = [record.gaps for record in served if record.gaps]
        return cls(
            tokens_per_second=len(tokens) / (max(tokens) - min(record.sent for record in served)),
            token_ms=1e3 * statistics.median(statistics.fmean(each) for each in gaps),
            first_token_ms=1e3 * statistics.median(record.first_token for record in served),
            last_first_token_ms=1e3 * max(record.tokens[0] for record in served),
            max_gap_ms=1e3 * max(max(each) for each in gaps),
            num_tokens=len(tokens),
            num_failed=sum(record.error is not None for record in records),
        )


@dataclass(frozen=True)
class Percentiles:
    """Percentiles of durations, in milliseconds."""

    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Self:
        """The percentiles of durations in seconds."""
        return cls(*(1e3 * float(value) for value in np.percentile(seconds, (50, 95, 99, 100))))


@dataclass(frozen=True)
class LoadSummary:
    """The figures of a run whose requests arrive over time.

    Attributes:
        requests_per_second: at which they arrived.
        tokens_per_second: all streams' tokens, over the time from the first request to the last token.
        first_token: from sending a request to its first token.
        gap: between tokens of a stream.
        num_served: streams that ended well.
        num_refused: requests that the server refused because its queue was full.
        num_failed: streams that ended with another error.
        refusal_ms: the longest time until a refusal; 0 without one.
    """

    requests_per_second: float
    tokens_per_second: float
    first_token: Percentiles
    gap: Percentiles
    num_served: int
    num_refused: int
    num_failed: int
    refusal_ms: float

    @classmethod
    def of(cls, records: Sequence[StreamRecord]) -> Self:
        """Summarise streams; at least one must have two tokens."""
        served = _served(records)
        refused = [record for record in records if record.is_refused]
        began, ended = min(record.sent for record in records), max(record.tokens[-1] for record in served)
        return cls(
            requests_per_second=(len(records) - 1) / max(1e-9, max(record.sent for record in records) - began),
            tokens_per_second=sum(len(record.tokens) for record in served) / (ended - began),
            first_token=Percentiles.of([record.first_token for record in served]),
            gap=Percentiles.of([gap for record in served for gap in record.gaps]),
            num_served=len(served),
            num_refused=len(refused),
            num_failed=sum(record.error is not None and not record.is_refused for record in records),
            refusal_ms=1e3 * max((record.ended - record.sent for record in refused if record.ended), default=0.0),
        )


def run_streams(
    stream: Callable[[PromptT, int], Iterator[int]],
    prompts: Sequence[PromptT],
    new_tokens: int,
    arrivals: Sequence[float] | None = None,
) -> list[StreamRecord]:
    """Send a request for each prompt and read all streams to their end.

    Args:
        stream: requests a completion, as `StreamFn`.
        prompts: what it takes.
        new_tokens: maximum length of a completion.
        arrivals: seconds from the start at which requests are sent; all at once by default.
    """
    records = [StreamRecord(sent) for sent in arrivals or [0.0] * len(prompts)]
    start = threading.Barrier(len(prompts) + 1)
    began = 0.0

    def read(record: StreamRecord, prompt: PromptT) -> None:
        start.wait()
        time.sleep(max(0.0, began + record.sent - time.perf_counter()))
        record.sent = time.perf_counter() - began
        try:
            for count in stream(prompt, new_tokens):
                if count:
                    record.tokens.append(time.perf_counter() - began)
        except Exception as error:
            record.is_refused = isinstance(error, StreamRefusedError)
            record.error = f"{type(error).__name__}: {error}"
        record.ended = time.perf_counter() - began

    threads = [threading.Thread(target=read, args=pair, daemon=True) for pair in zip(records, prompts, strict=True)]
    for thread in threads:
        thread.start()
    began = time.perf_counter()
    start.wait()
    for thread in threads:
        thread.join()
    return records


def poisson_arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Arrival times of a Poisson process of `rate` requests a second, in seconds."""
    draw = random.Random(seed)  # noqa: S311 (no secret)
    return list(accumulate(draw.expovariate(rate) for _ in range(count)))


def new_texts(count: int, num_words: int, seed: int) -> list[str]:
    """Distinct beginnings of a story, of about as many words; a model seldom ends such a text at once."""
    draw = random.Random(f"{seed} {count} {num_words}")  # noqa: S311 (no secret)
    return [f"Once upon a time there were {', '.join(draw.choices(WORDS, k=num_words))}" for _ in range(count)]
