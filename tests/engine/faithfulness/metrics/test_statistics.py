"""Means and intervals: against naive loops, and with the stated coverage."""

from __future__ import annotations

import math
import statistics as plain
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gradellm_engine.faithfulness.metrics import statistics
from gradellm_engine.faithfulness.metrics.curves import PIS, auc, curve, trapezoid_weights
from gradellm_engine.faithfulness.metrics.statistics import (
    Interval,
    bootstrap_interval,
    median,
    monte_carlo_interval,
    paired_difference,
)
from gradellm_engine.utils.rng import stream

Numbers = NDArray[np.float64]
seeds = st.integers(0, 2**63 - 1)
values = st.lists(st.floats(-10, 10), min_size=2, max_size=8).map(np.array)


def naive_percentile(ordered: list[float], percent: float) -> float:
    """Linear interpolation between the two neighbours."""
    position = percent / 100 * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


@given(values, seeds)
def test_bootstrap_equals_the_naive_loop(numbers: Numbers, seed: int) -> None:
    draws, n = stream(seed, "bootstrap"), len(numbers)
    means = sorted(math.fsum(numbers[i] for i in draws.integers(0, n, n)) / n for _ in range(80))
    interval = bootstrap_interval(numbers, seed, resamples=80)
    assert (interval.kind, interval.n) == ("bootstrap", n)
    assert interval.mean == pytest.approx(math.fsum(numbers) / n, abs=1e-13)
    assert interval.low == pytest.approx(naive_percentile(means, 2.5), abs=1e-13)
    assert interval.high == pytest.approx(naive_percentile(means, 97.5), abs=1e-13)


@given(st.integers(1, 4), st.integers(2, 5), seeds)
def test_monte_carlo_equals_the_naive_loop(S: int, N: int, seed: int) -> None:
    samples, weights = np.random.default_rng(seed).random((S, N)), np.arange(1.0, S + 1)
    draws, sums = stream(seed, "monte_carlo"), []
    for _ in range(60):
        picked = draws.integers(0, N, (S, N - 1))
        sums.append(math.fsum(weights[s] * samples[s, i] / (N - 1) for s in range(S) for i in picked[s]))
    interval = monte_carlo_interval(samples, weights, seed, resamples=60)
    assert (interval.kind, interval.n) == ("monte_carlo", N)
    assert interval.mean == pytest.approx(sum(weights[s] * samples[s].mean() for s in range(S)), abs=1e-13)
    assert interval.low == pytest.approx(naive_percentile(sorted(sums), 2.5), abs=1e-13)
    assert interval.high == pytest.approx(naive_percentile(sorted(sums), 97.5), abs=1e-13)


def test_ten_thousand_resamples_at_95_percent() -> None:
    numbers = np.random.default_rng(1).normal(size=200)
    interval = bootstrap_interval(numbers, 0)
    assert interval == bootstrap_interval(numbers, 0, resamples=10_000)
    assert interval.low is not None
    assert interval.high is not None
    error = numbers.std() / math.sqrt(200)
    assert (interval.low - interval.mean) / error == pytest.approx(-1.96, abs=0.08)
    assert (interval.high - interval.mean) / error == pytest.approx(1.96, abs=0.08)


def test_equal_values_and_seeds_give_equal_intervals() -> None:
    numbers, samples = np.random.default_rng(1).random(30), np.random.default_rng(2).random((19, 3))
    weights = trapezoid_weights(PIS)
    assert bootstrap_interval(numbers, 4, 500) == bootstrap_interval(numbers.copy(), 4, 500)
    assert bootstrap_interval(numbers, 4, 500) != bootstrap_interval(numbers, 5, 500)
    assert monte_carlo_interval(samples, weights, 4, 500) == monte_carlo_interval(samples.copy(), weights, 4, 500)
    assert monte_carlo_interval(samples, weights, 4, 500) != monte_carlo_interval(samples, weights, 5, 500)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000, 2**20])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    numbers, samples, weights = np.arange(7.0) ** 2, np.random.default_rng(2).random((5, 3)), np.ones(5)
    full = bootstrap_interval(numbers, 3, 300), monte_carlo_interval(samples, weights, 3, 300)
    monkeypatch.setattr(statistics, "CHUNK", chunk)
    assert (bootstrap_interval(numbers, 3, 300), monte_carlo_interval(samples, weights, 3, 300)) == full


def test_memory_is_bounded() -> None:
    numbers = np.random.default_rng(0).random(2000)
    tracemalloc.start()
    try:
        bootstrap_interval(numbers, 0, resamples=2000)  # 4 million draws, 32 MiB of indexes and as much of values
        assert tracemalloc.get_traced_memory()[1] < 24 * 2**20
    finally:
        tracemalloc.stop()


def coverage(intervals: list[Interval], truth: float) -> float:
    hits = [i.low <= truth <= i.high for i in intervals if i.low is not None and i.high is not None]
    assert len(hits) == len(intervals)
    return sum(hits) / len(hits)


def test_bootstrap_intervals_hold_the_mean_of_a_known_distribution() -> None:
    draws = np.random.default_rng(5)
    intervals = [bootstrap_interval(draws.exponential(size=60), seed, 300) for seed in range(300)]
    assert 0.90 < coverage(intervals, 1.0) < 0.98


def test_monte_carlo_intervals_hold_the_area_with_three_draws_a_pi() -> None:
    """Resamples of three of three masks would cover the area in only 87 % of cases."""
    draws, weights = np.random.default_rng(6), trapezoid_weights(PIS)
    intervals = [monte_carlo_interval(draws.random((19, 3)), weights, seed, 300) for seed in range(1000)]
    assert 0.915 < coverage(intervals, 0.45) < 0.98


def test_a_monte_carlo_interval_has_the_unbiased_width() -> None:
    samples, weights = np.random.default_rng(7).random((400, 3)), np.full(400, 1 / 400)
    interval = monte_carlo_interval(samples, weights, 0, 4000)
    error = math.sqrt(sum(w**2 * plain.variance(row) / 3 for w, row in zip(weights, samples.tolist(), strict=True)))
    assert interval.low is not None
    assert interval.high is not None
    assert (interval.high - interval.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.05)


def test_a_monte_carlo_mean_is_the_area() -> None:
    samples = np.random.default_rng(8).random((19, 3))
    interval = monte_carlo_interval(samples, trapezoid_weights(PIS), 0, 100)
    assert interval.mean == pytest.approx(auc(PIS, curve(samples)), abs=1e-14)
    # Several steps: their rows follow each other, with weights that average them.
    steps = np.random.default_rng(9).random((4, 19, 3))
    interval = monte_carlo_interval(steps.reshape(76, 3), np.tile(trapezoid_weights(PIS) / 4, 4), 0, 100)
    assert interval.mean == pytest.approx(np.mean([auc(PIS, curve(step)) for step in steps]), abs=1e-14)


def test_a_single_value_has_no_interval() -> None:
    one = bootstrap_interval(np.array([0.25]), 0)
    assert one == Interval(0.25, None, None, "bootstrap", 1)
    single = monte_carlo_interval(np.array([[0.5], [1.0]]), np.array([1.0, 2.0]), 0)
    assert single == Interval(2.5, None, None, "monte_carlo", 1)
    assert one.has_zero  # there is no interval that excludes zero
    assert single.has_zero


def test_equal_values_have_an_interval_of_width_zero() -> None:
    assert bootstrap_interval(np.full(8, 0.5), 0) == Interval(0.5, 0.5, 0.5, "bootstrap", 8)
    assert monte_carlo_interval(np.full((2, 4), 0.5), np.ones(2), 0) == Interval(1.0, 1.0, 1.0, "monte_carlo", 4)


@pytest.mark.parametrize(
    ("low", "high", "has_zero"), [(-1, 1, True), (0, 1, True), (-1, 0, True), (0.1, 1, False), (-1, -0.1, False)]
)
def test_whether_zero_is_ruled_out(low: float, high: float, has_zero: bool) -> None:
    assert Interval((low + high) / 2, low, high, "bootstrap", 3).has_zero is has_zero


def test_differences_are_paired() -> None:
    """Prompts differ much, methods little: only paired differences show it."""
    random = np.random.default_rng(3).normal(size=50) * 100
    better = random + 0.5 + np.random.default_rng(4).normal(size=50) * 0.1
    difference = paired_difference(better, random, 0, 1000)
    assert difference == bootstrap_interval(better - random, 0, 1000)
    assert difference.mean == pytest.approx(0.5, abs=0.05)
    assert not difference.has_zero
    assert bootstrap_interval(random, 0, 1000).has_zero
    same = paired_difference(better, better, 0, 1000)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="equal shapes"):
        paired_difference(better, random[1:], 0)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=9))
def test_median_is_the_middle(numbers: list[float]) -> None:
    assert median(np.array(numbers)) == pytest.approx(plain.median(numbers), abs=1e-15)


@pytest.mark.parametrize("bad", [np.array([]), np.array([1.0, np.nan]), np.array([np.inf]), np.array(1.0)])
def test_bad_values_are_refused(bad: Numbers) -> None:
    with pytest.raises(ValueError, match="finite values in 1 dimensions"):
        bootstrap_interval(bad, 0)
    with pytest.raises(ValueError, match="finite values in 1 dimensions"):
        median(bad)
    with pytest.raises(ValueError, match="finite values in 2 dimensions"):
        monte_carlo_interval(bad, np.ones(1), 0)


def test_weights_are_one_a_row() -> None:
    with pytest.raises(ValueError, match="each of 4 rows"):
        monte_carlo_interval(np.zeros((4, 3)), np.ones(3), 0)
