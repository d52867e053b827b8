"""Curves of a metric over pi, and the area under them (AUC).

A metric is computed for each random mask, averaged over the masks of each pi, and integrated over pi by the trapezoid
rule. The area is not divided by the grid's length: a metric that is 1 at every pi of PIS has area 0.9.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PIS: tuple[float, ...] = tuple(round(0.05 * k, 2) for k in range(1, 20))  # 0.05, 0.10 .. 0.95


def trapezoid_weights(pis: Sequence[float]) -> NDArray[np.float64]:
    """Trapezoid weights of the values at `pis`: half of the distance between each pi's neighbours. [P]

    Raises:
        ValueError: for fewer than two pis, or pis that do not ascend.
    """
    grid = np.asarray(pis, dtype=np.float64)
    gaps = np.diff(grid)
    if grid.ndim != 1 or len(grid) < 2 or not (gaps > 0).all():  # also refuses NaN
        raise ValueError(f"an area needs two or more pis in ascending order; they were {tuple(pis)}")
    weights = np.zeros_like(grid)
    weights[:-1] += gaps / 2
    weights[1:] += gaps / 2
    return weights


def curve(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the masks of each pi. [..., P, N] -> [..., P]"""
    means: NDArray[np.float64] = samples.mean(-1)
    return means


def auc(pis: Sequence[float], values: NDArray[np.float64]) -> float:
    """The area under a curve, not divided by the grid's length.

    Args:
        pis: ascending. [P]
        values: the metric at each. [P]

    Raises:
        ValueError: for fewer than two pis, pis that do not ascend, or values that are not one finite number a pi.
    """
    weights = trapezoid_weights(pis)
    if values.shape != weights.shape or not np.isfinite(values).all():
        raise ValueError(f"an area needs one finite value for each of {len(weights)} pis; they were {values}")
    return float(weights @ values)
