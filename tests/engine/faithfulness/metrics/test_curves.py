"""Areas under curves in closed form, and areas that separate good attributions from bad ones."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gradellm_engine.faithfulness.metrics.curves import PIS, auc, curve, trapezoid_weights
from gradellm_engine.faithfulness.metrics.hellinger import pi_soft_nc, pi_soft_ns
from gradellm_engine.faithfulness.metrics.keep_probabilities import retentions
from gradellm_engine.faithfulness.metrics.masks import keep_mask, uniforms

Numbers = NDArray[np.float64]
grids = st.lists(st.integers(0, 1000), min_size=2, max_size=20, unique=True).map(
    lambda values: [v / 1000 for v in sorted(values)]
)


def test_the_grid_is_of_exact_decimals() -> None:
    assert str(PIS[:3]) == "(0.05, 0.1, 0.15)"
    assert list(PIS) == [float(f"0.{hundredths:02}") for hundredths in range(5, 100, 5)]


def naive_auc(pis: list[float], values: list[float]) -> float:
    points = list(zip(pis, values, strict=True))
    return math.fsum((b - a) * (u + v) / 2 for (a, u), (b, v) in pairwise(points))


@given(grids, st.data())
def test_area_equals_the_naive_loop(pis: list[float], data: st.DataObject) -> None:
    values = data.draw(st.lists(st.floats(-2, 2), min_size=len(pis), max_size=len(pis)))
    assert auc(pis, np.array(values)) == pytest.approx(naive_auc(pis, values), abs=1e-13)
    assert trapezoid_weights(pis).sum() == pytest.approx(pis[-1] - pis[0], abs=1e-14)


def test_areas_in_closed_form() -> None:
    grid = np.array(PIS)
    assert auc(PIS, np.ones(19)) == pytest.approx(0.9, abs=1e-14)  # not divided by the grid's length
    assert auc(PIS, grid) == pytest.approx((0.95**2 - 0.05**2) / 2, abs=1e-14)
    # The trapezoid rule is above a parabola's area by h^2 (b - a) / 6.
    assert auc(PIS, grid**2) == pytest.approx((0.95**3 - 0.05**3) / 3 + 0.05**2 * 0.9 / 6, abs=1e-14)
    assert auc([0.1, 0.2, 0.6], np.array([1.0, 3.0, 0.0])) == pytest.approx(0.1 * 2 + 0.4 * 1.5, abs=1e-14)


@given(st.integers(0, 2**20), st.integers(1, 5))
def test_samples_are_averaged_before_or_after_alike(seed: int, N: int) -> None:
    samples = np.random.default_rng(seed).random((len(PIS), N))
    values = curve(samples)
    assert values == pytest.approx([math.fsum(row) / N for row in samples.tolist()], abs=1e-14)
    assert auc(PIS, values) == pytest.approx(np.mean([auc(PIS, samples[:, n]) for n in range(N)]), abs=1e-13)


def test_the_metric_is_taken_before_the_mean() -> None:
    """Eq 17 is not linear: distances of 0.2 and 0.8 at a baseline of 0.4 are 0.5 and 0, not max(0, -0.1)."""
    distances = np.array([[0.2, 0.8], [0.4, 0.4]])
    assert curve(pi_soft_ns(distances, 0.4)).tolist() == [0.25, 0]


@pytest.mark.parametrize("pis", [[], [0.5], [0.5, 0.5], [0.5, 0.4], [0.1, math.nan]])
def test_bad_grids_are_refused(pis: list[float]) -> None:
    with pytest.raises(ValueError, match="two or more pis"):
        auc(pis, np.zeros(len(pis)))


@pytest.mark.parametrize("values", [[1.0], [1.0, math.nan], [1.0, 2.0, 3.0]])
def test_bad_curves_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="one finite value for each of 2"):
        auc([0.1, 0.9], np.array(values))


def test_areas_separate_good_attributions_from_bad_ones() -> None:
    """3 of 30 tokens move the output: scores that rank them first beat constant ones, which beat reversed ones."""
    U, important = 30, [4, 11, 20]
    truth = np.zeros(U)
    truth[important] = 1
    r = uniforms(0, 0, PIS, 20, U)

    def areas(attribution: Numbers) -> tuple[float, float]:
        mask = keep_mask(r, np.stack([retention.probs for retention in retentions(attribution, PIS)]))
        missing = 1 - mask[..., important].mean(-1)  # share of the important tokens, the distance in this model. [P, N]
        return auc(PIS, curve(pi_soft_ns(missing, 1.0))), auc(PIS, curve(pi_soft_nc(1 - missing, 1.0)))

    nothing = areas(np.zeros(U))
    assert nothing == pytest.approx((0.45, 0.45), abs=0.02)  # constant scores: the area under pi itself
    good, bad = areas(truth), areas(1 - truth)
    assert good == pytest.approx((0.9, 0.9), abs=0.05)
    assert all(b < n - 0.2 for b, n in zip(bad, nothing, strict=True))
