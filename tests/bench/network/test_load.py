"""Streams against a server: what is recorded of each, and the figures of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import pytest

from gradellm_bench.network.load import RunSummary, StreamRecord, new_texts, poisson_arrivals, run_streams


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
