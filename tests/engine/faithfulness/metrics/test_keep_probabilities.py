"""Retaining probabilities: the requested mean is achieved for any scores."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gradellm_engine.faithfulness.metrics.curves import PIS
from gradellm_engine.faithfulness.metrics.keep_probabilities import (
    MARGIN,
    exponents,
    finite_scores,
    retentions,
    soft_retention,
    unit_scores,
)

Scores = NDArray[np.float64]
EXTREMES = (0.0, 1e-300, 1e-9, *PIS, 1 - 1e-9, 1.0)

numbers = st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-1, 1) | st.sampled_from([0.0, 1.0])
vectors = st.lists(numbers, min_size=1, max_size=40).map(lambda values: np.array(values, dtype=np.float64))
shares = st.floats(0, 1) | st.sampled_from(EXTREMES)


def one_hot(length: int) -> Scores:
    hot = np.zeros(length)
    hot[length // 2] = 1
    return hot


def half_zero(length: int) -> Scores:
    return np.repeat([0.0, 1.0], length // 2)


SHAPES = {
    "one-hot": one_hot(2000),
    "all but one": 1 - one_hot(2000),
    "half zero": half_zero(2000),
    "half zero, the others differ": np.concatenate([np.zeros(1000), np.linspace(0.1, 1, 1000)]),
    "heavy tail": np.exp(np.linspace(0, 60, 2000)),
    "linear": np.linspace(-3, 5, 2000),
    "two": np.array([3.0, -1.0]),
    "constant": np.full(2000, -7.0),
    "single": np.array([4.0]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_mean_is_pi_at_every_pi(name: str) -> None:
    for retention, pi in zip(retentions(SHAPES[name], EXTREMES), EXTREMES, strict=True):
        assert retention.pi == pi
        assert abs(retention.achieved - pi) < 1e-12
        assert retention.achieved == pytest.approx(math.fsum(retention.probs) / len(retention.probs), abs=1e-14)
        assert retention.expected_tokens == pytest.approx(pi * len(retention.probs), abs=1e-8)


@given(vectors, shares)
def test_the_mean_is_pi_for_any_scores(attribution: Scores, pi: float) -> None:
    (retention,) = retentions(attribution, [pi])
    assert abs(retention.achieved - pi) < 1e-12
    assert ((retention.probs >= 0) & (retention.probs <= 1)).all()


@given(vectors, st.floats(0.01, 0.99))
def test_probabilities_are_powers_of_the_scores(attribution: Scores, pi: float) -> None:
    """In Python's own arithmetic."""
    (retention,) = retentions(attribution, [pi])
    for prob, s in zip(retention.probs.tolist(), naive_unit(attribution.tolist()), strict=True):
        assert prob == pytest.approx(s**retention.alpha, rel=1e-8, abs=1e-12)


def naive_unit(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    if low / 2 == high / 2:
        return [0.5] * len(values)
    return [min(max((value - low) / (high - low), 1e-6), 1 - 1e-6) for value in values]


@given(vectors)
def test_unit_scores_equal_the_naive_ones(attribution: Scores) -> None:
    unit = unit_scores(attribution)
    assert unit.dtype == np.float64
    assert unit == pytest.approx(naive_unit(attribution.tolist()), rel=1e-12)


@given(
    st.lists(st.floats(-100, 100), min_size=2, max_size=40).map(np.array), st.floats(0.01, 100), st.floats(-100, 100)
)
def test_scale_and_offset_do_not_count(attribution: Scores, scale: float, offset: float) -> None:
    assume(np.ptp(attribution) > 0.01)
    assert unit_scores(scale * attribution + offset) == pytest.approx(unit_scores(attribution), abs=1e-8)


@given(vectors, st.floats(0.01, 0.99))
def test_the_order_of_scores_stays(attribution: Scores, pi: float) -> None:
    (retention,) = retentions(attribution, [pi])
    assert (np.diff(retention.probs[np.argsort(attribution, kind="stable")]) >= 0).all()


@given(vectors, st.lists(st.floats(0.001, 0.999), min_size=2, max_size=5, unique=True).map(sorted))
def test_more_is_kept_at_a_larger_pi(attribution: Scores, pis: list[float]) -> None:
    kept = retentions(attribution, pis)
    for less, more in pairwise(kept):
        assert more.alpha < less.alpha
        assert (more.probs >= less.probs).all()


def test_alpha_in_closed_form() -> None:
    # Half zero: at 1/4 the upper half is kept with 1/2; at 3/4 the upper half always, the lower with 1/2.
    unit = unit_scores(half_zero(2000))
    assert exponents(unit, [0.25])[0] == pytest.approx(math.log(0.5) / math.log(1 - 1e-6), rel=1e-9)
    assert exponents(unit, [0.75])[0] == pytest.approx(math.log(0.5) / math.log(1e-6), rel=1e-5)
    # One-hot of 2000: the hot token is always kept, the other 1999 as often as makes 100 and 1900.
    unit = unit_scores(one_hot(2000))
    assert exponents(unit, [0.05])[0] == pytest.approx(math.log(99 / 1999) / math.log(1e-6), rel=1e-5)
    assert exponents(unit, [0.95])[0] == pytest.approx(math.log(1899 / 1999) / math.log(1e-6), rel=1e-5)
    # pi of a quarter of a token: only the hot one is kept, with (1 - 1e-6)^alpha = 1/4.
    assert exponents(unit, [0.25 / 2000])[0] == pytest.approx(math.log(0.25) / math.log(1 - 1e-6), rel=1e-9)
    assert exponents(np.array([0.25, 0.25]), [0.5])[0] == pytest.approx(0.5, rel=1e-12)
    # s and s^2 at alpha: x + x^2 = 2 pi.
    x = (math.sqrt(1 + 8 * 0.3) - 1) / 2
    assert exponents(np.array([0.5, 0.25]), [0.3])[0] == pytest.approx(math.log(x) / math.log(0.5), rel=1e-12)


@pytest.mark.parametrize("attribution", [np.zeros(7), np.full(7, 3.5), np.array([-2.0])])
def test_equal_scores_stay_equal_and_are_pi(attribution: Scores) -> None:
    for retention in retentions(attribution, PIS):
        assert retention.probs == pytest.approx(np.full(len(attribution), retention.pi), abs=1e-14)


def test_the_limits_keep_nothing_and_everything() -> None:
    nothing, everything = retentions(np.array([3.0, 1.0, 2.0]), (0, 1))
    assert (nothing.alpha, everything.alpha) == (math.inf, 0.0)
    assert nothing.probs.tolist() == [0, 0, 0]
    assert everything.probs.tolist() == [1, 1, 1]
    almost = retentions(np.array([3.0, 1.0, 2.0]), (1e-12, 1 - 1e-12))
    assert almost[0].probs.max() < 1e-11
    assert almost[1].probs.min() > 1 - 1e-11


def test_the_whole_range_of_floats() -> None:
    unit = unit_scores(np.array([-1.7e308, 0.0, 1.7e308]))
    assert unit.tolist() == [MARGIN, 0.5, 1 - MARGIN]
    unit = unit_scores(np.array([1e-45, 0.0], dtype=np.float32))
    assert unit.tolist() == [1 - MARGIN, MARGIN]


def test_the_original_metric_takes_scores_as_they_are() -> None:
    attribution = np.array([-1.0, 0.25, 0.5, 3.0])
    raw = soft_retention(attribution, raw=True)
    assert raw.probs.tolist() == [0, 0.25, 0.5, 1]
    assert (raw.pi, raw.alpha, raw.achieved, raw.expected_tokens) == (None, 1.0, 1.75 / 4, 1.75)
    scaled = soft_retention(attribution, raw=False)
    assert scaled.probs == pytest.approx([1e-6, 1.25 / 4, 1.5 / 4, 1 - 1e-6], abs=1e-15)
    assert scaled.expected_tokens == pytest.approx(6.75 / 4, abs=1e-15)
    assert scaled.achieved == pytest.approx(6.75 / 16, abs=1e-15)


@pytest.mark.parametrize(
    ("attribution", "message"),
    [
        (np.array([]), "non-empty"),
        (np.ones((2, 2)), "vector"),
        (np.array([0.0, np.nan]), "token 1 was nan"),
        (np.array([-np.inf, 0.0]), "token 0 was -inf"),
    ],
)
def test_bad_scores_are_refused(attribution: Scores, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        finite_scores(attribution)
    with pytest.raises(ValueError, match=message):
        retentions(attribution, PIS)
    for raw in (False, True):
        with pytest.raises(ValueError, match=message):
            soft_retention(attribution, raw)


@pytest.mark.parametrize("pi", [-0.1, 1.1, math.nan])
def test_bad_pis_are_refused(pi: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        retentions(np.array([1.0, 2.0]), [pi])


@pytest.mark.parametrize("score", [0.0, 1.0, math.nan])
def test_alpha_needs_scores_between_0_and_1(score: float) -> None:
    with pytest.raises(ValueError, match="unit_scores"):
        exponents(np.array([0.5, score]), [0.5])
