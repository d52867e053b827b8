"""Summaries of requests: percentiles, rates, and which requests count."""

from __future__ import annotations

import numpy as np
import pytest

from bench.capacity.conftest import request
from gradellm_bench.capacity.request_metrics import RequestRecord, Summary
from gradellm_bench.capacity.traffic import Mode


def test_summaries_count_requests_and_tokens() -> None:
    served = [
        RequestRecord(request(Mode.PLAIN), tokens=[1.0, 1.1, 1.3], ended=1.3),
        RequestRecord(request(Mode.PER_TOKEN, arrival=0.5), tokens=[1.0], vectors=[1.2], ended=1.2),
        RequestRecord(request(Mode.PLAIN, arrival=0.6), refused=True, ended=0.6),
    ]
    record = Summary.of(served, start=0.0, end=2.0, busy_seconds=1.0)
    assert (record.requests, record.busy) == (3, 0.5)
    assert record.refused == pytest.approx(1 / 3)
    assert record.first_token[0] == pytest.approx(0.75)
    assert record.gap[0] == pytest.approx(0.15)
    assert record.lag[0] == pytest.approx(0.2)
    assert record.tokens_per_second == pytest.approx(2.0)
    assert record.vectors_per_second == pytest.approx(0.5)
    assert record.running == pytest.approx((0.3 + 0.2) / 2)


def test_percentiles_are_those_of_all_requests() -> None:
    seconds = np.random.default_rng(0).exponential(1.0, 500)
    served = [
        RequestRecord(request(Mode.PLAIN, arrival=0.0), tokens=[float(each)], ended=float(each)) for each in seconds
    ]
    found = Summary.of(served, start=0.0, end=100.0, busy_seconds=0.0)
    assert found.first_token == pytest.approx(tuple(np.percentile(seconds, (50, 95, 99))))
    assert found.gap == found.lag == (0.0, 0.0, 0.0)  # single tokens without attribution


def test_requests_count_by_arrival_and_tokens_by_time() -> None:
    served = [
        RequestRecord(request(Mode.PLAIN, arrival=0.5), tokens=[0.9, 1.5, 2.5], ended=2.5),  # arrived before
        RequestRecord(request(Mode.PLAIN, arrival=1.5), tokens=[1.9], ended=None),
        RequestRecord(request(Mode.EVALUATE, arrival=1.2), ended=1.8),
    ]
    found = Summary.of(served, start=1.0, end=2.0, busy_seconds=0.25)
    assert found.requests == 2
    assert found.first_token[0] == pytest.approx(0.4)
    assert found.tokens_per_second == 2.0
    assert found.running == pytest.approx(1.0 + 0.1)  # an unfinished request runs to the end
    assert found.busy == 0.25


def test_a_run_without_requests_is_all_zeros() -> None:
    found = Summary.of([], start=0.0, end=1.0, busy_seconds=0.0)
    assert (found.requests, found.refused, found.busy, found.tokens_per_second) == (0, 0.0, 0.0, 0.0)
