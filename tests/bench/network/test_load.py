"""Streams against a server: what is recorded of each, and the figures of a run."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from gradellm_bench.network.__main__ import measure_load
from gradellm_bench.network.load import (
    LoadSummary,
    RunSummary,
    StreamRecord,
    new_texts,
    poisson_arrivals,
    run_streams,
)
from gradellm_bench.network.servers import ServerError, StreamRefusedError


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradellm_bench.network.__main__.PAUSE_SECONDS", 0.0)


def test_figures_of_a_run() -> None:
    records = [
        StreamRecord(0.0, [1.0, 1.1, 1.4], 1.5),
        StreamRecord(0.5, [2.0, 2.3, 2.5], 2.5),
        StreamRecord(0.0, error="UNAVAILABLE"),
    ]
    summary = RunSummary.of(records)
    assert summary.tokens_per_second == pytest.approx(6 / 2.5)
    assert summary.token_ms == pytest.approx((200 + 250) / 2)
    assert summary.first_token_ms == pytest.approx((1000 + 1500) / 2)
    assert summary.last_first_token_ms == pytest.approx(2000)
    assert summary.max_gap_ms == pytest.approx(300)
    assert (summary.num_tokens, summary.num_failed) == (6, 1)


def test_streams_run_at_once_and_keep_their_errors() -> None:
    """Messages without a token are no tokens."""

    def stream(prompt: Sequence[int], new_tokens: int) -> Iterator[int]:
        if prompt == [0]:
            raise ConnectionError("refused")
        for _ in range(new_tokens):
            time.sleep(0.01)
            yield 1
            yield 0

    began = time.perf_counter()
    records = run_streams(stream, [[1], [2], [0]], 5)
    assert time.perf_counter() - began < 2 * 3 * 5 * 0.01 + 5
    assert [len(record.tokens) for record in records] == [5, 5, 0]
    assert [record.error for record in records] == [None, None, "ConnectionError: refused"]
    assert all(record.tokens == sorted(record.tokens) for record in records)
    assert all(record.ended is not None and record.ended >= max(record.tokens, default=0.0) for record in records)


def test_requests_are_sent_when_they_arrive() -> None:
    records = run_streams(lambda prompt, new_tokens: iter([1]), [[1], [2]], 1, [0.0, 0.05])
    assert records[0].sent < 0.05 <= records[1].sent


def test_arrivals_are_a_poisson_process() -> None:
    arrivals = poisson_arrivals(2000, 4.0, seed=1)
    assert arrivals == sorted(arrivals)
    assert arrivals == poisson_arrivals(2000, 4.0, seed=1) != poisson_arrivals(2000, 4.0, seed=2)
    assert arrivals[-1] == pytest.approx(500, rel=0.1)


def test_texts_are_distinct_and_long_enough() -> None:
    texts = new_texts(8, 40, seed=0)
    assert len(set(texts)) == 8
    assert all(len(text.split()) >= 40 for text in texts)
    assert texts == new_texts(8, 40, seed=0)


def test_figures_of_requests_that_arrive_over_time() -> None:
    records = [
        StreamRecord(0.0, [1.0, 1.1, 1.4], 1.5),
        StreamRecord(1.0, [2.0, 2.3, 2.5], 2.5),
        StreamRecord(1.5, ended=1.51, error="full", is_refused=True),
        StreamRecord(2.0, error="UNAVAILABLE"),
    ]
    summary = LoadSummary.of(records)
    assert summary.requests_per_second == pytest.approx(3 / 2.0)
    assert summary.tokens_per_second == pytest.approx(6 / 2.5)
    assert summary.first_token.p50 == pytest.approx(1000)
    assert (summary.gap.p50, summary.gap.max) == pytest.approx((250, 300))
    assert (summary.num_served, summary.num_refused, summary.num_failed) == (2, 1, 1)
    assert summary.refusal_ms == pytest.approx(10)


def test_load_is_a_share_of_the_measured_capacity() -> None:
    """A server that runs one request at a time, and refuses those that find another waiting."""
    running, waiting = threading.Lock(), threading.Semaphore(30)

    def stream(prompt: Sequence[int], new_tokens: int) -> Iterator[int]:
        if not waiting.acquire(blocking=False):
            raise StreamRefusedError("full")
        with running:
            for _ in range(new_tokens):
                time.sleep(0.001)
                yield 1
        waiting.release()

    rows = measure_load({"one": stream}, lambda text: [1] * len(text), 4, [50, 100], 12, 5)
    assert [row["load"] for row in rows] == [50, 100]
    assert [row["rate"] / row["capacity"] for row in rows] == pytest.approx([0.5, 1.0])
    assert all(row["num_served"] == 12 for row in rows)


def test_a_failed_stream_ends_the_run() -> None:
    def stream(prompt: Sequence[int], new_tokens: int) -> Iterator[int]:
        yield from [1, 1]
        raise ConnectionError("lost")

    with pytest.raises(ServerError, match="one: ConnectionError: lost"):
        measure_load({"one": stream}, lambda text: [1] * len(text), 4, [50], 3, 5)
