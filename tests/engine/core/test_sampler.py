"""Sampling against a naive reference: the draw, temperature, top_k and top_p."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from gradellm_engine import ComputationError, Sampling
from gradellm_engine.core.sampler import Distribution, choose_token, random_seed, sampling_probs, uniform_draw
from gradellm_engine.sampling_params import MAX_SEED

Normal = Callable[..., Tensor]
tensor_seeds = st.integers(0, 2**20)
draw_seeds = st.integers(0, MAX_SEED)
steps = st.integers(0, 10_000)


def distribution_of(logits: Tensor, step: int) -> Distribution:
    """The checked distribution of one token's logits. [V]"""
    (distribution,) = Distribution.of(logits[None])
    distribution.check(step)
    return distribution


KNOWN_DRAWS = [0.06899750099129986, 0.8326169442274957, 0.7335090357947883, 0.8123651379978721]


@given(draw_seeds, steps)
def test_draw_is_pure_and_lies_in_0_1(seed: int, step: int) -> None:
    draw = uniform_draw(seed, step)
    assert 0 <= draw < 1
    assert draw == uniform_draw(seed, step)


def test_draws_of_known_arguments() -> None:
    """Recorded on 2026-11-20: another value would change every generation that is resumed by another server."""
    assert [uniform_draw(0, 0), uniform_draw(1, 0), uniform_draw(0, 1), uniform_draw(MAX_SEED, 9)] == KNOWN_DRAWS


def test_draws_are_uniform() -> None:
    for arguments in ([(7, step) for step in range(4000)], [(seed, 7) for seed in range(4000)]):
        counts = Counter(int(uniform_draw(*a) * 10) for a in arguments)
        chi_squared = sum((counts[b] - 400) ** 2 / 400 for b in range(10))
        assert chi_squared < 27.9  # 9 degrees of freedom, probability 0.001
    pairs = Counter((uniform_draw(3, s) < 0.5, uniform_draw(3, s + 1) < 0.5) for s in range(4000))
    assert all(900 < count < 1100 for count in pairs.values())


def test_chosen_seeds_are_valid_and_differ() -> None:
    seeds = {random_seed() for _ in range(20)}
    assert len(seeds) == 20
    assert all(Sampling(seed=seed).seed == seed for seed in seeds)


def naive_probs(logits: list[float], sampling: Sampling) -> list[float]:
    """Reference for logits that all differ: sort, keep, and normalise."""
    weights = {i: math.exp((x - max(logits)) / sampling.temperature) for i, x in enumerate(logits)}
    best = sorted(weights, key=lambda i: -logits[i])
    kept = best[: sampling.top_k or None]
    total = sum(weights[i] for i in kept)
    smallest, mass = [], 0.0
    for i in kept:  # the smallest set that holds top_p
        smallest.append(i)
        mass += weights[i] / total
        if mass >= sampling.top_p:
            break
    total = sum(weights[i] for i in smallest)
    return [weights[i] / total if i in smallest else 0.0 for i in range(len(logits))]


@given(tensor_seeds, st.integers(1, 12), st.floats(0.05, 20), st.integers(0, 15), st.floats(0.01, 1))
def test_probs_equal_the_naive_reference(
    normal: Normal, seed: int, V: int, temperature: float, top_k: int, top_p: float
) -> None:
    logits = normal(seed, V) * 3
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    probs = sampling_probs(logits, sampling)
    expected = torch.tensor(naive_probs(logits.tolist(), sampling), dtype=torch.float64)
    assert torch.allclose(probs, expected, atol=1e-12)
    assert math.isclose(probs.sum().item(), 1, rel_tol=1e-12)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-30, 1e-6])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    for dtype in (torch.float32, torch.float64):
        logits = torch.tensor([1e4, -1e4, 1e4 + 1, 3e3], dtype=dtype)
        assert sampling_probs(logits, Sampling(temperature=temperature)).tolist() == [0, 0, 1, 0]


def test_a_huge_temperature_is_uniform() -> None:
    probs = sampling_probs(torch.tensor([5.0, -5.0, 0.0, 1.0]), Sampling(temperature=1e308))
    assert torch.allclose(probs, torch.full((4,), 0.25, dtype=torch.float64))


def test_a_token_that_the_model_excludes_stays_excluded() -> None:
    logits = torch.tensor([0.0, -torch.inf, 0.0])
    assert sampling_probs(logits, Sampling(temperature=2.0)).tolist() == [0.5, 0, 0.5]
    distribution = distribution_of(logits, 0)
    assert distribution.logprob(1) == -math.inf
    assert {choose_token(distribution, Sampling(temperature=2.0), seed, 0) for seed in range(40)} == {0, 2}


def test_top_p_includes_the_token_that_reaches_it() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    for top_p, kept in [(1e-9, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (1.0, 3)]:
        assert int((sampling_probs(logits, Sampling(temperature=1.0, top_p=top_p)) > 0).sum()) == kept


def test_top_k_before_top_p() -> None:
    """top_p is a share of the mass that top_k keeps: 0.5 of 0.8 is more than 0.6 of it."""
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    probs = sampling_probs(logits, Sampling(temperature=1.0, top_k=2, top_p=0.6))
    assert torch.allclose(probs, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))


@given(tensor_seeds, draw_seeds, steps, st.floats(0.1, 5), st.integers(0, 5), st.floats(0.05, 1))
def test_a_choice_has_mass(
    normal: Normal, tensor_seed: int, seed: int, step: int, temperature: float, top_k: int, top_p: float
) -> None:
    distribution = distribution_of((normal(tensor_seed, 40) * 4).float(), step)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    chosen = choose_token(distribution, sampling, seed, step)
    assert sampling_probs(distribution.logits, sampling)[chosen] > 0
    assert chosen == choose_token(distribution, sampling, seed, step)


@pytest.mark.parametrize("draw", [0.0, 0.25 - 2**-54, 0.25, 0.5, 1 - 2**-53])
def test_draws_at_the_borders(monkeypatch: pytest.MonkeyPatch, draw: float) -> None:
    monkeypatch.setattr("gradellm_engine.core.sampler.uniform_draw", lambda seed, step: draw)
    distribution = distribution_of(torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, 0.0, 0.0, -torch.inf]), 0)
    chosen = choose_token(distribution, Sampling(temperature=1.0), 0, 0)
    assert chosen == [1, 3, 4, 5][int(draw * 4)]


def test_frequencies_are_the_probabilities() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5])
    distribution = distribution_of(logits, 0)
    sampling = Sampling(temperature=1.3, top_k=4)
    count = 3000
    drawn = Counter(choose_token(distribution, sampling, 11, step) for step in range(count))
    for token_id, prob in enumerate(sampling_probs(logits, sampling).tolist()):
        assert abs(drawn[token_id] / count - prob) <= 4 * math.sqrt(prob * (1 - prob) / count)


def test_temperature_0_is_the_argmax() -> None:
    distribution = distribution_of(torch.tensor([0.0, 3.0, -1.0]), 0)
    assert {choose_token(distribution, Sampling(), seed, step) for seed in range(3) for step in range(3)} == {1}


@given(tensor_seeds, st.integers(2, 30))
def test_distribution_is_the_log_softmax(normal: Normal, seed: int, V: int) -> None:
    logits = normal(seed, V) * 10
    distribution = distribution_of(logits, 0)
    logprobs = [distribution.logprob(i) for i in range(V)]
    assert torch.allclose(torch.tensor(logprobs, dtype=torch.float64), logits.log_softmax(-1), atol=1e-9)
    assert math.isclose(sum(map(math.exp, logprobs)), 1, rel_tol=1e-9)
    top = distribution.top(V + 5)
    assert [t.id for t in top] == logits.argsort(descending=True).tolist()
    assert [t.logprob for t in top] == [logprobs[t.id] for t in top]
    assert distribution.top(0) == ()
    for i in range(V):
        candidates = [j for j in range(V) if j != i]
        assert distribution.runner_up(i) == max(candidates, key=lambda j: logits[j].item())


@pytest.mark.parametrize("bad", [[math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf]])
def test_logits_that_are_not_finite_are_an_error(bad: list[float]) -> None:
    with pytest.raises(ComputationError, match="not finite at step 17"):
        distribution_of(torch.tensor(bad), 17)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype: torch.dtype) -> None:
    distribution = distribution_of(torch.zeros(3, dtype=dtype), 0)
    assert distribution.logits.dtype == torch.float32
    assert math.isclose(distribution.logprob(0), -math.log(3), rel_tol=1e-6)


@given(tensor_seeds, st.integers(1, 12), st.integers(0, 15), st.data())
def test_compared_logprobs(normal: Normal, seed: int, V: int, count: int, data: st.DataObject) -> None:
    logits = normal(seed, V).double() * 3
    token = data.draw(st.integers(0, V - 1))
    expected = logits.log_softmax(-1)
    others = sorted((value for i, value in enumerate(expected.tolist()) if i != token), reverse=True)
    found = distribution_of(logits, 0).compared(token, count)
    assert found.chosen == pytest.approx(expected[token].item(), abs=1e-9)
    assert found.alternatives == pytest.approx(others[:count], abs=1e-9)
    assert found.sum_of_squares == pytest.approx(expected.exp().square().sum().item())


@given(tensor_seeds, st.floats(0.05, 20), st.floats(0, 0.99), st.integers(0, 15), st.floats(0.01, 1))
def test_min_p_keeps_the_best_and_its_rivals(
    normal: Normal, seed: int, temperature: float, min_p: float, top_k: int, top_p: float
) -> None:
    logits = normal(seed, 12) * 3
    sampling = Sampling(temperature=temperature, min_p=min_p, top_k=top_k, top_p=top_p)
    probs = sampling_probs(logits, sampling)
    whole = (logits / temperature).softmax(-1)
    shares = whole / whole.max()
    assert probs[logits.argmax()] > 0
    assume(bool(((shares - min_p).abs() > 1e-9).all()))  # not at the border, where rounding decides
    masked = torch.where(shares > min_p, logits, torch.full_like(logits, -torch.inf))
    plain = sampling_probs(masked, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
    assert torch.allclose(probs, plain, atol=1e-9)


def test_min_p_is_a_share_of_the_largest_probability() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    for min_p, kept in [(0.0, 3), (0.39, 3), (0.41, 2), (0.59, 2), (0.61, 1), (1.0, 1)]:
        assert int((sampling_probs(logits, Sampling(temperature=1.0, min_p=min_p)) > 0).sum()) == kept
    halved = sampling_probs(logits, Sampling(temperature=2.0, min_p=0.6))  # after the temperature: sqrt(0.3 / 0.5)
    assert int((halved > 0).sum()) == 3


def test_processed_logits_are_sampled_from() -> None:
    distribution, processed = distribution_of(torch.tensor([0.0, 3.0, -1.0]), 0), torch.tensor([5.0, 3.0, -1.0])
    assert choose_token(distribution, Sampling(), 0, 0, processed) == 0
    only = torch.tensor([-torch.inf, -torch.inf, 0.0])
    assert choose_token(distribution, Sampling(temperature=1.0), 0, 0, only) == 2


@given(tensor_seeds, st.sampled_from([0.3, 3.0, 20.0]), st.sampled_from([1e-9, 0.1, 0.5, 0.9, 0.999, 1 - 1e-12]))
def test_top_p_sorts_candidates_with_the_same_result_as_all(
    normal: Normal, seed: int, scale: float, top_p: float
) -> None:
    """Also with many tokens of equal probability, of which the first are kept."""
    logits = (normal(seed, 5000) * scale).round(decimals=1)
    probs = (logits - logits.max()).softmax(-1)
    ordered, ids = probs.sort(descending=True, stable=True)
    expected = probs.index_fill(0, ids[ordered.cumsum(-1) - ordered >= top_p], 0.0)
    assert torch.equal(sampling_probs(logits, Sampling(temperature=1.0, top_p=top_p)), expected / expected.sum())
