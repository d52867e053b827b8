"""Means with intervals at 95 %: over prompts, or for one prompt over its mask draws.

Intervals are percentile bootstraps of 10,000 seeded resamples. Equal numbers and seeds give equal intervals. All
methods that are compared on the same prompts meet the same resamples of them.
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
CHUNK = 2**17  # numbers drawn at once: as many as stay in a processor's cache; it changes nothing else
KEPT = 2**20  # counts that are kept for whoever asks next


@dataclass(frozen=True)
class Interval:
    """A mean and how sure it is.

    Attributes:
        mean: of what was measured.
        low: where the interval at 95 % begins; None where one prompt or one draw says nothing about others.
        high: where it ends; None where `low` is.
        kind: over prompts (bootstrap), or over the mask draws of one prompt (monte_carlo), which says nothing about
            other prompts.
        n: how many prompts; or mask draws at each pi.
    """

    mean: float
    low: float | None
    high: float | None
    kind: Literal["bootstrap", "monte_carlo"]
    n: int

    @property
    def has_zero(self) -> bool:
        """Whether zero cannot be ruled out."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high


def bootstrap_interval(values: NDArray[np.float64], seed: int, resamples: int = RESAMPLES) -> Interval:
    """The mean over prompts. A single prompt has a mean, but no interval.

    Args:
        values: a number a prompt. [n]
        seed: of the resamples.
        resamples: how many.

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
    """That of one set of samples [S, N]; see `monte_carlo_intervals`."""
    _check(samples, 2)
    return monte_carlo_intervals(samples[None], weights, seed, resamples)[0]


def monte_carlo_intervals(
    samples: NDArray[np.float64], weights: NDArray[np.float64], seed: int, resamples: int = RESAMPLES
) -> list[Interval]:
    """A weighted sum of means over mask draws, such as one prompt's area under its curve; of M methods.

    Each pi (and step) has its own draws, so each is resampled by itself. A resample takes N - 1 of N draws: with few
    draws, N of N would make the variance too small by (N - 1) / N, a third for the default of 3. A single draw a pi
    has a mean, but no interval. All methods meet the same resamples: what a resample is, is how often it takes each
    draw, and its sums are one product with all methods' samples.

    Args:
        samples: the metric, a row for each pi, or for each step and pi. [M, S, N]
        weights: what a row's mean counts: `trapezoid_weights` for an area, divided by the number of steps for a mean
            of areas. [S]
        seed: of the resamples.
        resamples: how many.

    Raises:
        ValueError: where there are no samples, some are not finite, or weights are not one a row.
    """
    _check(samples, 3)
    M, S, N = samples.shape
    if weights.shape != (S,):
        raise ValueError(f"weights must be one for each of {S} rows, their shape was {weights.shape}")
    means = samples.mean(2) @ weights
    if N == 1:
        return [Interval(float(mean), None, None, "monte_carlo", N) for mean in means]
    weighted = (samples * weights[:, None]).reshape(M, S * N).T  # [S N, M]
    # A data set's prompts are resampled alike, so that the counts of one are those of the next.
    counts = (_kept_counts if resamples * S * N <= KEPT else _counts)(seed, S, N, resamples)
    resampled = np.concatenate([its.astype(np.float64) @ weighted / (N - 1) for its in counts])  # [resamples, M]
    return [_interval(float(mean), resampled[:, m], "monte_carlo", N) for m, mean in enumerate(means)]


def _counts(seed: int, S: int, N: int, resamples: int) -> Iterator[NDArray[np.uint32]]:
    """How often resamples take each draw, some of them at once. [., S N]"""
    draws = stream(seed, "monte_carlo")
    for count in _chunks(resamples, S * N):
        taken = draws.integers(0, N, (count, S, N - 1)) + N * np.arange(count * S).reshape(count, S, 1)
        counts = np.bincount(taken.ravel(), minlength=count * S * N)
        yield counts.reshape(count, S * N).astype(np.uint32)


@lru_cache(maxsize=4)
def _kept_counts(seed: int, S: int, N: int, resamples: int) -> tuple[NDArray[np.uint32], ...]:
    """The same, of few rows."""
    return tuple(_counts(seed, S, N, resamples))


def paired_difference(
    values: NDArray[np.float64], random: NDArray[np.float64], seed: int, resamples: int = RESAMPLES
) -> Interval:
    """A method's mean difference from random, prompt by prompt.

    Args:
        values: the method's number a prompt. [n]
        random: the random method's, on the same prompts in the same order. [n]
        seed: of the resamples.
        resamples: how many.

    Raises:
        ValueError: where there are no values, some are not finite, or they are not in pairs.
    """
    if values.shape != random.shape:
        raise ValueError(f"differences need pairs: there were {values.shape} values and {random.shape} of random")
    return bootstrap_interval(values - random, seed, resamples)


def median(values: NDArray[np.float64]) -> float:
    """The middle value; the mean of the two middle ones of an even number. [n]

    Raises:
        ValueError: where there are no values, or some are not finite.
    """
    _check(values, 1)
    return float(np.median(values))


def _check(values: NDArray[np.float64], dimensions: int) -> None:
    if values.ndim != dimensions or not values.size or not np.isfinite(values).all():
        raise ValueError(
            f"a mean needs one or more finite numbers in {dimensions} dimensions; of shape {values.shape}, "
            f"{int((~np.isfinite(values)).sum())} were not finite"
        )


def _chunks(resamples: int, size: int) -> Iterator[int]:
    """How many resamples of `size` numbers each are drawn at once, one count after the other."""
    most = max(1, CHUNK // size)
    for done in range(0, resamples, most):
        yield min(most, resamples - done)


def _interval(
    mean: float, resampled: NDArray[np.float64], kind: Literal["bootstrap", "monte_carlo"], n: int
) -> Interval:
    low, high = np.percentile(resampled, PERCENTILES)
    return Interval(mean, float(low), float(high), kind, n)
