"""Agreement with rationales, against the definitions threshold by threshold."""

from __future__ import annotations

import itertools
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gradellm_engine.faithfulness.metrics.insertion_deletion import ranking
from gradellm_engine.faithfulness.metrics.rationale_agreement import average_precision, token_f1

Scores = NDArray[np.float64]
Mask = NDArray[np.bool_]
Case = tuple[Scores, Mask]


def sensible(pairs: list[tuple[int, bool]]) -> bool:
    return len({inside for _, inside in pairs}) == 2


# Few different scores, so that ties are many.
cases = (
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30)
    .filter(sensible)
    .map(lambda pairs: (np.array([float(s) for s, _ in pairs]), np.array([inside for _, inside in pairs])))
)


def naive_average_precision(scores: list[float], rationale: list[bool]) -> float:
    """All scores at or above a threshold are chosen; the thresholds are the scores, descending."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = [inside for score, inside in zip(scores, rationale, strict=True) if score >= threshold]
        precision, recall = sum(chosen) / len(chosen), sum(chosen) / sum(rationale)
        total, before = total + precision * (recall - before), recall
    return total


@given(cases)
def test_average_precision_equals_its_definition(case: Case) -> None:
    scores, rationale = case
    expected = naive_average_precision(scores.tolist(), rationale.tolist())
    assert average_precision(scores, rationale) == pytest.approx(expected, abs=1e-14)


@given(cases, st.randoms(use_true_random=False))
def test_average_precision_depends_on_neither_positions_nor_scale(case: Case, random: Random) -> None:
    scores, rationale = case
    order = np.array(sorted(range(len(scores)), key=lambda _: random.random()))
    expected = average_precision(scores, rationale)
    assert average_precision(scores[order], rationale[order]) == pytest.approx(expected, abs=1e-14)
    assert average_precision(np.exp(scores), rationale) == pytest.approx(expected, abs=1e-14)


def test_average_precision_of_known_rankings() -> None:
    rationale = np.array([True, False, True, False])
    assert average_precision(np.array([4.0, 2.0, 3.0, 1.0]), rationale) == 1
    assert average_precision(np.array([4.0, 3.0, 2.0, 1.0]), rationale) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.array([1.0, 3.0, 2.0, 4.0]), rationale) == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert average_precision(np.zeros(4), rationale) == 0.5  # all tie: the share of rationale tokens
    assert average_precision(np.array([1.7e308, -1.7e308, 1.7e308, 0.0]), rationale) == 1


@given(cases, st.integers(0, 2**63 - 1), st.integers(0, 100))
def test_f1_equals_its_definition(case: Case, seed: int, step: int) -> None:
    scores, rationale = case
    k = int(rationale.sum())
    chosen = set(ranking(scores, seed, step)[:k].tolist())
    there = set(np.flatnonzero(rationale).tolist())
    hits = len(chosen & there)
    precision, recall = hits / len(chosen), hits / len(there)
    expected = 2 * precision * recall / (precision + recall) if hits else 0.0
    assert token_f1(scores, rationale, seed, step) == pytest.approx(expected, abs=1e-14)


def test_f1_of_known_rankings() -> None:
    rationale = np.array([True, False, True, False, False])
    assert token_f1(np.array([5.0, 1.0, 4.0, 2.0, 3.0]), rationale, 0, 0) == 1
    assert token_f1(np.array([5.0, 4.0, 3.0, 2.0, 1.0]), rationale, 0, 0) == 0.5
    assert token_f1(np.array([1.0, 4.0, 2.0, 5.0, 3.0]), rationale, 0, 0) == 0


def test_ties_are_broken_by_the_seed_and_fairly() -> None:
    rationale = np.array([True, True, False, False, False])
    found = [token_f1(np.zeros(5), rationale, seed, 0) for seed in range(1000)]
    assert set(found) == {0, 0.5, 1}
    assert np.mean(found) == pytest.approx(2 / 5, abs=0.04)
    assert found == [token_f1(np.ones(5), rationale, seed, 0) for seed in range(1000)]


@pytest.mark.parametrize(
    ("scores", "rationale", "message"),
    [
        (np.zeros(3), np.zeros(3, dtype=bool), "holds none"),
        (np.zeros(3), np.ones(3, dtype=bool), "holds all"),
        (np.zeros(3), np.array([True, False]), "vector over 3 tokens"),
        (np.zeros(3), np.array([1, 0, 1]), "bool vector"),
        (np.array([]), np.array([], dtype=bool), "non-empty"),
        (np.array([0.0, np.nan]), np.array([True, False]), "token 1 was nan"),
    ],
)
def test_bad_rationales_are_refused(scores: Scores, rationale: Mask, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        average_precision(scores, rationale)
    with pytest.raises(ValueError, match=message):
        token_f1(scores, rationale, 0, 0)


def test_every_order_of_four() -> None:
    """All rankings of four tokens; the mean is known by counting."""
    rationale = np.array([True, True, False, False])
    orders = [np.array(order, dtype=np.float64) for order in itertools.permutations(range(4))]
    assert np.mean([token_f1(order, rationale, 0, 0) for order in orders]) == pytest.approx(0.5)
    areas = [average_precision(order, rationale) for order in orders]
    # The ranks of the two rationale tokens are 12, 13, 14, 23, 24 or 34, equally often.
    expected = np.mean(
        [1, (1 + 2 / 3) / 2, (1 + 2 / 4) / 2, (1 / 2 + 2 / 3) / 2, (1 / 2 + 2 / 4) / 2, (1 / 3 + 2 / 4) / 2]
    )
    assert np.mean(areas) == pytest.approx(expected)
