"""Latency of one request: ratios by round, lower bounds, and backends that are not comparable."""

from __future__ import annotations

import pytest

from gradellm_bench.backends import BACKENDS, Backend
from gradellm_bench.latency import SLOW_ROUNDS, SLOW_TOKENS, Latency, latencies
from gradellm_bench.models import BenchModel
from gradellm_bench.timeline import Timeline


def test_ratios_are_taken_round_by_round() -> None:
    slow, fast = Latency("a", 1, 1, per_token=[20.0, 60.0, 21.0]), Latency("b", 1, 1, per_token=[10.0, 30.0, 7.0])
    assert slow.over(fast) == 2.0


def test_floors_are_reads_at_the_measured_bandwidth(tiny: BenchModel) -> None:
    backends = [BACKENDS["plain"], BACKENDS["per_token"], BACKENDS["chunked(16)"], BACKENDS["recompute"]]
    (row,) = latencies(
        tiny, backends, prompt_lengths=[16], new_tokens=16, rounds=1, bandwidth=1e6, progress=lambda stage: None
    )
    keys_and_values = 24 * 2 * 2 * (8 + 8) * 4  # in the middle: tokens x layers x groups x widths x bytes
    body, head = 1e3 * (tiny.body_bytes + keys_and_values) / 1e6, 1e3 * tiny.head_bytes / 1e6
    floors = [latency.floor for latency in row]
    assert floors == pytest.approx([body + head, 2 * body + head, 1.0625 * body + head, None])


def test_backends_that_decode_other_tokens_are_not_compared(tiny: BenchModel) -> None:
    def wrong(bench_model: BenchModel, ids: object, count: int) -> list[Timeline]:
        return [Timeline(ids=[0] * count, tokens=[1.0] * count)]

    backends = [BACKENDS["plain"], Backend("wrong", "", wrong, None)]
    measuring = latencies(
        tiny, backends, prompt_lengths=[16], new_tokens=4, rounds=1, bandwidth=1e9, progress=lambda stage: None
    )
    with pytest.raises(RuntimeError, match="wrong decoded other tokens"):
        list(measuring)


def test_a_round_is_added_in_milliseconds() -> None:
    latency = Latency("a", 1, 2)
    latency.add(Timeline(ids=[1, 2], read=1.0, tokens=[2.0, 3.0], vectors=[2.5, 4.0]))
    latency.add(Timeline(ids=[1, 2], read=1.0, tokens=[2.0, 3.0]))
    assert latency.first_token == [2000.0, 2000.0]
    assert latency.per_token == [1500.0, 1000.0]  # with and without the last row
    assert latency.to_vector == [750.0]


def test_slow_backends_run_fewer_rounds_and_tokens(tiny: BenchModel) -> None:
    counts = []

    def slow(bench_model: BenchModel, prompts: object, count: int) -> list[Timeline]:
        counts.append(count)
        return [Timeline(ids=[], read=0.0, tokens=[1.0] * count)]

    (row,) = latencies(
        tiny,
        [BACKENDS["plain"], Backend("slow", "", slow, None, is_slow=True)],
        prompt_lengths=[8],
        new_tokens=4,
        rounds=SLOW_ROUNDS + 2,
        bandwidth=1e9,
        progress=lambda stage: None,
    )
    assert counts == [SLOW_TOKENS] * SLOW_ROUNDS  # none of them a warm-up
    assert [len(latency.per_token) for latency in row] == [SLOW_ROUNDS + 2, SLOW_ROUNDS]
