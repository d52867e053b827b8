"""Retaining probabilities: from scores to s^alpha with mean(s^alpha) = pi (eqs 19 and 20).

Without alpha, methods whose scores have different means would keep different amounts of text, and could not be
compared. Scores s lie within [1e-6, 1 - 1e-6], so mean(s^alpha) falls from 1 to 0 as alpha rises from 0 to infinity,
and alpha exists for every pi.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MARGIN = 1e-6  # distance of unit scores from 0 and 1
HALVINGS = 64  # bisection steps: a bracket of at most log(1.4e7) shrinks below float64 resolution


@dataclass(frozen=True, eq=False)
class Retention:
    """Retaining probabilities of one method at one pi.

    Attributes:
        pi: the requested mean; None for the original metrics, whose probabilities are the scores themselves.
        achieved: the mean of `probs` (eq 19).
        alpha: the power that scores were raised to; infinity for pi = 0.
        probs: s^alpha. [U]
    """

    pi: float | None
    achieved: float
    alpha: float
    probs: NDArray[np.float64]

    @property
    def expected_tokens(self) -> float:
        """The expected number of kept tokens, E[R]."""
        return float(self.probs.sum())


def finite_scores(attribution: NDArray[np.floating]) -> NDArray[np.float64]:
    """The attribution as float64, one score a token. [U]

    Raises:
        ValueError: where there are no scores, or some are not finite.
    """
    scores = np.asarray(attribution, dtype=np.float64)
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"scores must be a non-empty vector, one score a token; their shape was {scores.shape}")
    if not np.isfinite(scores).all():
        index = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(f"scores must be finite; the score of token {index} was {scores[index]}")
    return scores


def unit_scores(attribution: NDArray[np.floating]) -> NDArray[np.float64]:
    """Scores min-maxed over U and clipped to [1e-6, 1 - 1e-6]. [U] -> [U]

    Constant scores, and a single score, become 1/2: they stay equal, and every s^alpha is pi.

    Raises:
        ValueError: where there are no scores, or some are not finite.
    """
    halves = finite_scores(attribution) / 2  # the difference of two finite numbers may overflow
    low, high = halves.min(), halves.max()
    if low == high:
        return np.full_like(halves, 0.5)
    unit: NDArray[np.float64] = np.clip((halves - low) / (high - low), MARGIN, 1 - MARGIN)
    return unit


def exponents(unit: NDArray[np.float64], pis: Sequence[float]) -> NDArray[np.float64]:
    """The alphas with mean(s^alpha) = pi for all pis, by bisection on log(alpha). [P]

    The mean lies between min(s)^alpha and max(s)^alpha, so alpha lies between log(pi) / log(min s) and
    log(pi) / log(max s). The derivative of the mean by log(alpha) is at most 1/e, so pi is achieved up to rounding.

    Args:
        unit: scores s, each in (0, 1). [U]
        pis: each in [0, 1]; at 0 alpha is infinity, at 1 it is 0. [P]

    Raises:
        ValueError: for a score outside (0, 1) or a pi outside [0, 1].
    """
    if not ((unit > 0) & (unit < 1)).all():  # also refuses NaN
        raise ValueError("scores must lie above 0 and below 1: apply unit_scores first")
    for pi in pis:
        check_pi(pi)
    wanted = np.asarray(pis, dtype=np.float64)
    alphas = np.where(wanted == 0, math.inf, 0.0)
    is_inside = (wanted > 0) & (wanted < 1)
    logs, targets = np.log(unit), np.log(wanted[is_inside])
    low, high = np.log(targets / logs.min()), np.log(targets / logs.max())
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        is_too_much = powers(logs, np.exp(middle)).mean(1) > wanted[is_inside]
        low, high = np.where(is_too_much, middle, low), np.where(is_too_much, high, middle)
    alphas[is_inside] = np.exp((low + high) / 2)
    return alphas


def powers(logs: NDArray[np.float64], alphas: NDArray[np.float64]) -> NDArray[np.float64]:
    """s^alpha from log(s). [U], [P] -> [P, U]"""
    raised: NDArray[np.float64] = np.exp(alphas[:, None] * logs)
    return raised


def retentions(attribution: NDArray[np.floating], pis: Sequence[float]) -> tuple[Retention, ...]:
    """Retaining probabilities s^alpha at each pi.

    Args:
        attribution: of any scale and sign. [U]
        pis: each in [0, 1].

    Raises:
        ValueError: where there are no scores, some are not finite, or a pi lies outside [0, 1].
    """
    unit = unit_scores(attribution)
    alphas = exponents(unit, pis)
    return tuple(
        Retention(pi, float(probs.mean()), float(alpha), probs)
        for pi, alpha, probs in zip(pis, alphas, powers(np.log(unit), alphas), strict=True)
    )


def soft_retention(attribution: NDArray[np.floating], raw: bool) -> Retention:
    """Retaining probabilities of the original Soft-NS and Soft-NC: the scores themselves (eq 14).

    Args:
        attribution: of any scale and sign. [U]
        raw: clip scores to [0, 1] instead of min-maxing them (`unit_scores`).

    Raises:
        ValueError: where there are no scores, or some are not finite.
    """
    probs = np.clip(finite_scores(attribution), 0, 1) if raw else unit_scores(attribution)
    return Retention(None, float(probs.mean()), 1.0, probs)


def check_pi(pi: float) -> None:
    """Raise ValueError unless pi lies in [0, 1]."""
    if not 0 <= pi <= 1:  # also refuses NaN
        raise ValueError(f"pi must lie between 0 and 1, was {pi}")
