"""Means over prompts with intervals at 95 %: percentile bootstrap with 10,000 seeded resamples.

The results equal those of the engine's `bootstrap_interval`, with the same random numbers: equal values and seeds give
equal intervals. All methods use the same resamples of prompts. numpy is imported only when something is computed.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, TypeVar

from gradellm.errors import GradellmError
from gradellm.models import Interval

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "average_intervals",
    "bands",
    "bootstrap_interval",
    "bootstrap_intervals",
    "has_zero",
    "median",
    "require_numpy",
]

RESAMPLES = 10_000
PERCENTILES = (2.5, 97.5)
_CHUNK = 2**20  # random numbers per chunk, which bounds the memory

Key = TypeVar("Key")


def require_numpy() -> Any:  # noqa: ANN401  (a module)
    """Return numpy. Raises GradellmError with installation instructions if it is not installed."""
    try:
        import numpy
    except ImportError as error:
        raise GradellmError(
            f"statistics over a data set need numpy, which is not installed ({error}): pip install 'gradellm[data]'"
        ) from error
    return numpy


def bootstrap_interval(values: Sequence[float], seed: int, resamples: int = RESAMPLES) -> Interval:
    """Return the mean over prompts with its interval. A single prompt has no interval."""
    return bootstrap_intervals({"": values}, seed, resamples)[""]


def bootstrap_intervals(
    columns: Mapping[Key, Sequence[float]], seed: int, resamples: int = RESAMPLES
) -> dict[Key, Interval]:
    """Return the mean of each column with its interval. Columns have the same prompts in the same order.

    Raises ValueError for no prompts, or a value that is not finite.
    """
    arrays = _columns(columns)
    if not arrays:
        return {}
    n = len(next(iter(arrays.values())))
    if n == 1:
        return {key: Interval(float(values[0]), None, None, "bootstrap", 1) for key, values in arrays.items()}
    means: dict[Key, list[NDArray[np.float64]]] = {key: [] for key in arrays}
    for picks in _picks(n, _stream(seed, "bootstrap"), resamples):
        for key, values in arrays.items():
            means[key].append(values[picks].mean(1))
    return {key: _interval(float(values.mean()), means[key], n) for key, values in arrays.items()}


def average_intervals(
    groups: Sequence[Mapping[Key, Sequence[float]]], seed: int, resamples: int = RESAMPLES
) -> dict[Key, Interval]:
    """Return the mean over data sets of their means, with equal weights; each data set is resampled separately.

    Columns that a data set lacks are left out.
    """
    np = require_numpy()
    columns = [_columns(group) for group in groups]
    keys = [key for key in columns[0] if all(key in group for group in columns)]
    if not keys:
        return {}
    sums = {key: np.zeros(resamples) for key in keys}
    for index, group in enumerate(columns):
        n = len(next(iter(group.values())))
        done = 0
        for picks in _picks(n, _stream(seed, "bootstrap_average", index), resamples):
            for key in keys:
                sums[key][done : done + len(picks)] += group[key][picks].mean(1)
            done += len(picks)
    count = sum(len(next(iter(group.values()))) for group in columns)
    means = {key: float(np.mean([group[key].mean() for group in columns])) for key in keys}
    if any(len(next(iter(group.values()))) == 1 for group in columns):  # no interval from one prompt
        return {key: Interval(means[key], None, None, "bootstrap", count) for key in keys}
    return {key: _interval(means[key], [sums[key] / len(columns)], count) for key in keys}


def bands(
    curves: Mapping[Key, Sequence[Sequence[float]]], seed: int, resamples: int = RESAMPLES
) -> dict[Key, tuple[list[float], list[float], list[float]]]:
    """Return the mean of each curve over prompts, and the lower and upper bounds of its pointwise band at 95 %.

    `curves` has for each key one row per prompt, with one value per point. The band of a single prompt is its curve.
    """
    np = require_numpy()
    arrays = {key: np.asarray(rows, dtype=np.float64) for key, rows in curves.items()}  # each [n, P]
    if not arrays:
        return {}
    n, size = next(iter(arrays.values())).shape
    table = np.concatenate(list(arrays.values()), axis=1)  # [n, K P]
    resampled = []
    for picks in _picks(n, _stream(seed, "bootstrap"), resamples):  # picks [B, n]
        offsets = picks + n * np.arange(len(picks))[:, None]
        counts = np.bincount(offsets.ravel(), minlength=picks.size).reshape(picks.shape)
        resampled.append(counts @ table / n)  # [B, K P]
    low, high = np.percentile(np.concatenate(resampled), PERCENTILES, axis=0)
    mean = table.mean(0)
    return {
        key: tuple(row[index * size : (index + 1) * size].tolist() for row in (mean, low, high))
        for index, key in enumerate(arrays)
    }


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return float(require_numpy().median(_columns({"": values})[""]))


def has_zero(interval: Interval) -> bool:
    """Whether the interval contains zero; true without an interval."""
    return interval.low is None or interval.high is None or interval.low <= 0 <= interval.high


def _columns(columns: Mapping[Key, Sequence[float]]) -> dict[Key, NDArray[np.float64]]:
    """Return the columns as arrays [n] of equal length, validated."""
    np = require_numpy()
    arrays = {key: np.asarray(values, dtype=np.float64) for key, values in columns.items()}
    if len({array.shape for array in arrays.values()}) > 1:
        raise ValueError("columns must have the same prompts, but their lengths differ")
    for key, array in arrays.items():
        if array.ndim != 1 or not array.size or not np.isfinite(array).all():
            raise ValueError(f"{key!r}: a mean needs a non-empty vector of finite numbers; its shape is {array.shape}")
    return arrays


def _stream(seed: int, purpose: str, *key: int) -> np.random.Generator:
    """Return the random generator of a purpose, the same as the engine's `utils.rng.stream`."""
    numpy = require_numpy()
    bits = numpy.random.PCG64([seed, zlib.crc32(purpose.encode()), *key])
    generator: np.random.Generator = numpy.random.Generator(bits)
    return generator


def _picks(n: int, draws: np.random.Generator, resamples: int) -> Iterator[NDArray[np.int64]]:
    """Yield the prompt indexes of resamples, in chunks. [B, n]"""
    most = max(1, _CHUNK // n)
    for done in range(0, resamples, most):
        yield draws.integers(0, n, (min(most, resamples - done), n))


def _interval(mean: float, resampled: Sequence[NDArray[np.float64]], n: int) -> Interval:
    np = require_numpy()
    low, high = np.percentile(np.concatenate(resampled), PERCENTILES)
    return Interval(mean, float(low), float(high), "bootstrap", n)
