"""Uniforms that do not change, and masks that keep tokens with their probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradellm_engine.faithfulness.metrics.curves import PIS
from gradellm_engine.faithfulness.metrics.keep_probabilities import retentions
from gradellm_engine.faithfulness.metrics.masks import keep_mask, soft_uniforms, uniforms
from gradellm_engine.methods.sampling_params import SeedSwitches
from gradellm_engine.sampling_params import MAX_SEED
from gradellm_engine.utils.rng import stream

seeds = st.integers(0, MAX_SEED)
steps = st.integers(0, 10_000)
KNOWN_DRAWS = [0.23835337623227426, 0.6561471861910488, 0.10719810735481416, 0.5112819347669569]


@given(seeds, steps)
def test_generators_are_those_of_the_methods(seed: int, step: int) -> None:
    actual, expected = stream(seed, "random", step), SeedSwitches(seed).generator("random", step)
    assert actual.random(3).tolist() == expected.random(3).tolist()


@given(
    seeds,
    steps,
    st.lists(st.sampled_from(PIS), min_size=1, max_size=4, unique=True),
    st.integers(1, 3),
    st.integers(1, 9),
)
def test_a_uniform_depends_only_on_its_key(
    seed: int, step: int, pis: list[float], num_samples: int, num_tokens: int
) -> None:
    full = uniforms(seed, step, PIS, 3, 9)
    subset = uniforms(seed, step, pis, num_samples, num_tokens)
    assert subset.shape == (len(pis), num_samples, num_tokens)
    assert ((subset >= 0) & (subset < 1)).all()
    for row, pi in zip(subset, pis, strict=True):
        assert row.tolist() == full[PIS.index(pi), :num_samples, :num_tokens].tolist()


def test_other_keys_have_other_uniforms() -> None:
    draws = [uniforms(seed, step, PIS, 3, 4) for seed in (0, 1, 2**32, MAX_SEED) for step in (0, 1, 50_000)]
    draws += [soft_uniforms(seed, step, 3, 4)[None] for seed in (0, 1) for step in (0, 1)]
    rows = np.concatenate([draw.reshape(-1, 4) for draw in draws])
    assert len(np.unique(rows)) == rows.size == (12 * 19 + 4) * 3 * 4


def test_recorded_uniforms() -> None:
    """Recorded on 2026-11-26: a change here would change every reported metric."""
    draws = [
        uniforms(0, 0, [0.05], 1, 1),
        uniforms(MAX_SEED, 7, [0.5, 0.95], 3, 2)[1:, 2:, 1:],
        soft_uniforms(3, 1, 1, 2),
    ]
    assert np.concatenate([draw.ravel() for draw in draws]).tolist() == KNOWN_DRAWS


def test_a_pi_is_its_decimal() -> None:
    assert 3 * 0.05 > 0.15
    assert 0.3 - 0.1 < 0.2
    assert uniforms(1, 2, [3 * 0.05, 0.3 - 0.1], 2, 5).tolist() == uniforms(1, 2, [0.15, 0.2], 2, 5).tolist()
    assert uniforms(1, 2, [0.150001], 2, 5).tolist() != uniforms(1, 2, [0.15], 2, 5).tolist()


def test_soft_uniforms_do_not_depend_on_their_number() -> None:
    full = soft_uniforms(5, 3, 4, 6)
    assert full.shape == (4, 6)
    assert soft_uniforms(5, 3, 2, 3).tolist() == full[:2, :3].tolist()


def test_uniforms_are_uniform() -> None:
    r = uniforms(11, 4, PIS, 20, 50).ravel()  # 19,000
    tenths = np.bincount((r * 10).astype(int), minlength=10)
    assert ((tenths - 1900) ** 2 / 1900).sum() < 27.9  # chi-squared, 9 degrees of freedom, probability 0.001
    # The first uniforms of all rows come from generators with neighbouring seeds.
    firsts = uniforms(11, 4, PIS, 200, 1).ravel()
    assert abs(firsts.mean() - 0.5) < 4 / math.sqrt(12 * firsts.size)
    assert abs(np.corrcoef(firsts[:-1], firsts[1:])[0, 1]) < 4 / math.sqrt(firsts.size)


def test_tokens_are_kept_as_often_as_their_probability() -> None:
    attribution = np.array([0.0, 1.0, 2.0, 5.0, 9.0])
    retained = retentions(attribution, (0.2, 0.6))
    probs = np.stack([retention.probs for retention in retained])
    N = 3000
    frequency = keep_mask(uniforms(0, 0, (0.2, 0.6), N, 5), probs).mean(1)  # [P, U]
    assert (np.abs(frequency - probs) <= 4 * np.sqrt(probs * (1 - probs) / N) + 1e-9).all()
    assert frequency.mean(1) == pytest.approx([0.2, 0.6], abs=4 * math.sqrt(0.25 / (N * 5)))


@given(seeds, st.integers(1, 6), st.integers(1, 7))
def test_the_mask_token_by_token(seed: int, P: int, U: int) -> None:
    r = uniforms(seed, 0, PIS[:P], 3, U)
    probs = uniforms(seed, 1, PIS[:P], 1, U)[:, 0]  # any numbers in [0, 1)
    mask = keep_mask(r, probs)
    assert mask.shape == r.shape
    for p in range(P):
        for n in range(3):
            assert mask[p, n].tolist() == [bool(r[p, n, i] < probs[p, i]) for i in range(U)]


def test_a_higher_probability_keeps_the_same_tokens() -> None:
    """Uniforms are shared: higher probabilities keep the same tokens and more."""
    r = uniforms(2, 0, PIS, 3, 30)
    low = np.tile(np.linspace(0, 0.8, 30), (len(PIS), 1))
    assert (keep_mask(r, low) <= keep_mask(r, low + 0.2)).all()


def test_a_uniform_equal_to_the_probability_does_not_keep() -> None:
    """Uniforms are in [0, 1), so r < p has probability p; at p = 0 the uniform 0 must not keep."""
    assert keep_mask(np.array([[0.0, 0.5, 0.5]]), np.array([0.0, 0.5, 0.75])).tolist() == [[False, False, True]]


def test_the_limits_keep_nothing_and_everything() -> None:
    r = uniforms(2, 0, (0.0, 1.0), 3, 30)
    nothing, everything = retentions(np.arange(30.0), (0, 1))
    mask = keep_mask(r, np.stack([nothing.probs, everything.probs]))
    assert not mask[0].any()
    assert mask[1].all()


@pytest.mark.parametrize("pi", [-0.1, 1.5, math.nan])
def test_bad_pis_are_refused(pi: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        uniforms(0, 0, [0.5, pi], 1, 1)
