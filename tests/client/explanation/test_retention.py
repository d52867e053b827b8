"""Keep probabilities: their mean is pi, they keep the order of the scores, and they are the server's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradellm import InvalidExplanationError
from gradellm.explanation.retention import retention_probs
from gradellm_engine.faithfulness.metrics.keep_probabilities import retentions


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_retention_is_the_servers(scores: list[float], pi: float) -> None:
    (expected,) = retentions(np.array(scores), [pi])
    assert retention_probs(scores, pi) == pytest.approx(expected.probs.tolist(), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("scores", "pi"), [([], 0.5), ([math.nan], 0.5), ([1.0], 0.0), ([1.0], 1.0)])
def test_retention_of_nothing_is_refused(scores: list[float], pi: float) -> None:
    with pytest.raises(InvalidExplanationError):
        retention_probs(scores, pi)


@pytest.mark.parametrize("pi", [0.3, 0.5, 0.95])
def test_scores_are_raised_to_one_power(pi: float) -> None:
    """Between the clamped ends, log p / log s is the same alpha for every score s, and larger scores keep more."""
    scores = [-2.0, 0.5, -1.0, 2.0, 1.5]
    probs = retention_probs(scores, pi)
    assert math.fsum(probs) / len(probs) == pytest.approx(pi, abs=1e-12)
    assert sorted(range(5), key=scores.__getitem__) == sorted(range(5), key=probs.__getitem__)
    alphas = [math.log(probs[i]) / math.log((scores[i] + 2) / 4) for i in (1, 2, 4)]
    assert alphas == pytest.approx([alphas[0]] * 3, rel=1e-9)


@pytest.mark.parametrize(("factor", "offset"), [(2.0, 0.0), (1.0, 100.0), (1e300, 0.0)])
def test_scale_and_offset_of_scores_have_no_effect(factor: float, offset: float) -> None:
    scores = [-3.0, 0.25, 1.0, 4.0]
    changed = retention_probs([factor * score + offset for score in scores], 0.3)
    assert changed == pytest.approx(retention_probs(scores, 0.3), rel=1e-9)


def test_equal_scores_are_kept_equally() -> None:
    assert retention_probs([7.0] * 3, 0.2) == [0.2] * 3


def test_a_difference_that_overflows_is_normalised() -> None:
    low, middle, high = retention_probs([-1.7e308, 0.0, 1.7e308], 0.5)
    assert low < middle < high
    assert math.fsum((low, middle, high)) / 3 == pytest.approx(0.5)
