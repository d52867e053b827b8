"""Insertion and deletion: nested sets of the right size, and ties without a bias."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gradellm_engine.faithfulness.metrics.insertion_deletion import STEPS, flip_auc, ranking, top_counts, top_sets

Scores = NDArray[np.float64]
seeds = st.integers(0, 2**63 - 1)
steps = st.integers(0, 1000)
# Few different values, so that ties are many.
vectors = st.lists(st.integers(-3, 3), min_size=1, max_size=45).map(lambda values: np.array(values, dtype=np.float64))


@pytest.mark.parametrize("n", [1, 2, 7, 19, 20, 21, 39, 40, 100, 1000, 2047])
def test_counts_are_exact(n: int) -> None:
    assert top_counts(n) == tuple(ceil(Fraction(5, 100) * j * n) for j in range(1, 21))
    assert top_counts(n)[-1] == n


def test_counts_are_computed_in_integers() -> None:
    """In floats 0.05 * 3 > 0.15, and the ceiling would be one token too many of 20."""
    assert ceil(0.05 * 3 * 20) == 4
    assert top_counts(20) == tuple(range(1, 21))


@given(vectors, seeds, steps)
def test_sets_are_nested_and_hold_the_top_scores(attribution: Scores, seed: int, step: int) -> None:
    sets = top_sets(attribution, seed, step)
    assert len(sets) == STEPS == 20
    assert tuple(map(len, sets)) == top_counts(len(attribution))
    for fewer, more in pairwise(sets):
        assert set(fewer.tolist()) <= set(more.tolist())
    for token_set in sets:
        assert token_set.tolist() == sorted(set(token_set.tolist()))
        left = np.delete(attribution, token_set)
        assert not len(left) or attribution[token_set].min() >= left.max()
    assert sets[-1].tolist() == list(range(len(attribution)))


@given(vectors, seeds, steps)
def test_ties_are_ranked_by_a_permutation_independent_of_scores(attribution: Scores, seed: int, step: int) -> None:
    order = ranking(attribution, seed, step).tolist()
    rank_of = {token: rank for rank, token in enumerate(ranking(np.zeros(len(attribution)), seed, step).tolist())}
    assert sorted(rank_of) == list(range(len(attribution)))
    assert order == sorted(range(len(attribution)), key=lambda i: (-attribution[i], rank_of[i]))


def test_ties_differ_by_seed_and_step_and_not_by_method() -> None:
    equal = np.zeros(30)
    first = ranking(equal, 0, 0).tolist()
    assert first == ranking(equal, 0, 0).tolist() == ranking(equal + 5, 0, 0).tolist()
    assert first != list(range(30))
    assert first != ranking(equal, 1, 0).tolist()
    assert first != ranking(equal, 0, 1).tolist()


def test_ties_favour_no_position() -> None:
    firsts = np.bincount([ranking(np.zeros(10), seed, 0)[0] for seed in range(2000)], minlength=10)
    assert ((firsts - 200) ** 2 / 200).sum() < 27.9  # chi-squared, 9 degrees of freedom, probability 0.001


def test_minus_zero_is_zero() -> None:
    signs = np.where(np.arange(30) % 2 == 0, 0.0, -0.0)
    assert ranking(signs, 0, 0).tolist() == ranking(np.zeros(30), 0, 0).tolist()


@pytest.mark.parametrize("bad", [np.array([]), np.array([np.nan, 1.0])])
def test_bad_scores_are_refused(bad: Scores) -> None:
    with pytest.raises(ValueError, match="scores must be"):
        top_sets(bad, 0, 0)


def test_the_area_is_the_mean_over_steps() -> None:
    flips = np.arange(20) >= 13
    assert flip_auc(flips) == 7 / 20
    assert flip_auc(np.zeros(20, dtype=bool)) == 0
    assert flip_auc(np.ones(20, dtype=bool)) == 1
    with pytest.raises(ValueError, match="each of 20 steps"):
        flip_auc(flips[1:])
