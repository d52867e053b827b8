"""Means with 95 % intervals: over prompts (bootstrap), or over one prompt's random masks (Monte Carlo).

Intervals are percentile bootstraps of 10,000 seeded resamples. Equal values and seeds give equal intervals. Methods
that are compared on the same prompts share their resamples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gradellm_engine.utils.rng import stream

RESAMPLES = 10_000
PERCENTILES = (2.5, 97.5)
CHUNK = 2**17  # numbers drawn at once, so that they fit the CPU's cache; it does not change the results
MAX_CACHED = 2**20  # counts that are cached between calls


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval.

    Attributes:
        mean: the mean.
        low: lower end of the interval; None where there is a single prompt or mask.
        high: upper end; None where `low` is None.
        kind: over prompts (bootstrap), or over the random masks of one prompt (monte_carlo), which says nothing about
            other prompts.
        n: number of prompts; or of random masks at each pi.
    """

    mean: float
    low: float | None
    high: float | None
    kind: Literal["bootstrap", "monte_carlo"]
    n: int

    @property
    def has_zero(self) -> bool:
        """Whether the interval includes zero; True where there is no interval."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high


def bootstrap_interval(values: NDArray[np.float64], seed: int, resamples: int = RESAMPLES) -> Interval:
    """The mean over prompts with its bootstrap interval. A single prompt has no interval.

    Args:
        values: one value a prompt. [n]
        seed: of the resamples.
        resamples: their number.

    Raises:
        ValueError: where there are no values, or some are not finite.
    """
    _check(values, 1)
    n = len(values)
    if n == 1:
        return Interval(float(values[0]), None, None, "bootstrap", n)
    draws = stream(seed, "bootstrap")
    means = [
        values[draws.integers(0, n, (count, n))].mean(1)  # [count]
        for count in _chunks(resamples, n)
    ]
    return _interval(float(values.mean()), np.concatenate(means), "bootstrap", n)


def monte_carlo_interval(
    samples: NDArray[np.float64], weights: NDArray[np.float64], seed: int, resamples: int = RESAMPLES
) -> Interval:
    """The interval of one method's samples [S, N]; see `monte_carlo_intervals`."""
    _check(samples, 2)
    return monte_carlo_intervals(samples[None], weights, seed, resamples)[0]


def monte_carlo_intervals(
    samples: NDArray[np.float64], weights: NDArray[np.float64], seed: int, resamples: int = RESAMPLES
) -> list[Interval]:
    """Weighted sums of means over random masks, such as the area under one prompt's curve, for M methods.

    Each row (pi, or step and pi) has its own masks, so each is resampled by itself. A resample takes N - 1 of N masks:
    N of N would make the variance too small by (N - 1) / N, a third for the default N of 3. With a single mask there is
    no interval. All methods share the resamples: a resample is how often each mask is taken, and the sums of all
    resamples are one matrix product with the samples of all methods.

    Args:
        samples: the metric for each mask, a row for each pi, or for each step and pi. [M, S, N]
        weights: weight of each row's mean: `trapezoid_weights` for an area, divided by the number of steps for a mean
            of areas. [S]
        seed: of the resamples.
        resamples: their number.

    Raises:
        ValueError: where there are no samples, some are not finite, or weights are not one a row.
    """
    _check(samples, 3)
    M, S, N = samples.shape
    if weights.shape != (S,):
        raise ValueError(f"one weight is needed for each of {S} rows; their shape was {weights.shape}")
    means = samples.mean(2) @ weights
    if N == 1:
        return [Interval(float(mean), None, None, "monte_carlo", N) for mean in means]
    weighted = (samples * weights[:, None]).reshape(M, S * N).T  # [S N, M]
    # The counts depend only on seed and shape, so all prompts of a data set share them.
    counts = (_cached_counts if resamples * S * N <= MAX_CACHED else _counts)(seed, S, N, resamples)
    resampled = np.concatenate([chunk.astype(np.float64) @ weighted / (N - 1) for chunk in counts])  # [resamples, M]
    return [_interval(float(mean), resampled[:, m], "monte_carlo", N) for m, mean in enumerate(means)]


def _counts(seed: int, S: int, N: int, resamples: int) -> Iterator[NDArray[np.uint32]]:
    """How often each resample takes each mask, a chunk of resamples at a time. [chunk, S N]"""
    draws = stream(seed, "monte_carlo")
    for count in _chunks(resamples, S * N):
        resampled = draws.integers(0, N, (count, S, N - 1)) + N * np.arange(count * S).reshape(count, S, 1)
        counts = np.bincount(resampled.ravel(), minlength=count * S * N)
        yield counts.reshape(count, S * N).astype(np.uint32)


@lru_cache(maxsize=4)
def _cached_counts(seed: int, S: int, N: int, resamples: int) -> tuple[NDArray[np.uint32], ...]:
    """`_counts`, cached; for few numbers."""
    return tuple(_counts(seed, S, N, resamples))


def paired_difference(
    values: NDArray[np.float64], random: NDArray[np.float64], seed: int, resamples: int = RESAMPLES
) -> Interval:
    """A method's mean difference from random with its bootstrap interval, paired by prompt.

    Args:
        values: the method's value for each prompt. [n]
        random: random's values for the same prompts in the same order. [n]
        seed: of the resamples.
        resamples: their number.

    Raises:
        ValueError: where there are no values, some are not finite, or the two differ in number.
    """
    if values.shape != random.shape:
        raise ValueError(f"paired differences need equal shapes; values had {values.shape}, random {random.shape}")
    return bootstrap_interval(values - random, seed, resamples)


def median(values: NDArray[np.float64]) -> float:
    """The median; of an even number of values the mean of the two middle ones. [n]

    Raises:
        ValueError: where there are no values, or some are not finite.
    """
    _check(values, 1)
    return float(np.median(values))


def _check(values: NDArray[np.float64], dimensions: int) -> None:
    if values.ndim != dimensions or not values.size or not np.isfinite(values).all():
        raise ValueError(
            f"a mean needs one or more finite values in {dimensions} dimensions; the shape was {values.shape}, "
            f"and {int((~np.isfinite(values)).sum())} values were not finite"
        )


def _chunks(resamples: int, size: int) -> Iterator[int]:
    """Chunk sizes that sum to `resamples`, for resamples of `size` numbers each."""
    most = max(1, CHUNK // size)
    for done in range(0, resamples, most):
        yield min(most, resamples - done)


def _interval(
    mean: float, resampled: NDArray[np.float64], kind: Literal["bootstrap", "monte_carlo"], n: int
) -> Interval:
    low, high = np.percentile(resampled, PERCENTILES)
    return Interval(mean, float(low), float(high), kind, n)
