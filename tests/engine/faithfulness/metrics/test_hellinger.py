"""The Hellinger distance as a distance, against a naive loop; the two metrics at their limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from gradellm_engine.faithfulness.metrics.hellinger import (
    MIN_BASELINE,
    hellinger,
    pi_soft_nc,
    pi_soft_ns,
    probabilities,
)
from gradellm_engine.faithfulness.metrics.keep_probabilities import retentions
from gradellm_engine.faithfulness.metrics.masks import keep_mask, uniforms

Normal = Callable[..., Tensor]
seeds = st.integers(0, 2**20)
sharpness = st.sampled_from([0.01, 1.0, 10.0, 100.0])


def hellinger_of_logits(a: Tensor, b: Tensor) -> Tensor:
    return hellinger(probabilities(a), probabilities(b))


def naive_hellinger(p: list[float], q: list[float]) -> float:
    return math.sqrt(math.fsum((math.sqrt(a) - math.sqrt(b)) ** 2 for a, b in zip(p, q, strict=True))) / math.sqrt(2)


@given(seeds, st.integers(1, 50), sharpness)
def test_equals_the_naive_loop(normal: Normal, seed: int, V: int, scale: float) -> None:
    p, q = probabilities(normal(seed, 2, V) * scale)
    expected = naive_hellinger(p.tolist(), q.tolist())
    assert hellinger(p, q).item() == pytest.approx(expected, abs=1e-14)
    assert hellinger(p.float(), q.float()).item() == pytest.approx(expected, abs=1e-6)


@given(seeds, st.integers(1, 50), sharpness)
def test_probabilities_are_the_softmax(normal: Normal, seed: int, V: int, scale: float) -> None:
    logits = normal(seed, 2, V) * scale
    assert torch.allclose(probabilities(logits), logits.softmax(-1), rtol=1e-12, atol=1e-15)
    assert torch.equal(probabilities(logits)[1], probabilities(logits[1]))


@given(seeds, st.integers(1, 50), sharpness)
def test_is_a_distance(normal: Normal, seed: int, V: int, scale: float) -> None:
    p, q, r = probabilities(normal(seed, 3, V) * scale)
    for a, b in ((p, q), (q, r), (p, r)):
        assert 0 <= hellinger(a, b).item() <= 1
        assert hellinger(a, b).item() == hellinger(b, a).item()
        assert hellinger(a, a).item() == 0
        assert (hellinger(a, b).item() > 0) == (not torch.equal(a, b))
    assert hellinger(p, r).item() <= hellinger(p, q).item() + hellinger(q, r).item() + 1e-14


def test_known_distances() -> None:
    half = torch.tensor([0.5, 0.5, 0.0, 0.0])
    assert hellinger(half, torch.tensor([0.0, 0.0, 0.5, 0.5])).item() == 1
    assert hellinger(half, torch.tensor([1.0, 0.0, 0.0, 0.0])).item() == pytest.approx(
        math.sqrt(1 - math.sqrt(0.5)), abs=1e-7
    )
    # Bernoulli p and q: H^2 = 1 - sqrt(p q) - sqrt((1 - p) (1 - q))
    p, q = 0.3, 0.45
    expected = math.sqrt(1 - math.sqrt(p * q) - math.sqrt((1 - p) * (1 - q)))
    bernoulli = torch.tensor([[p, 1 - p], [q, 1 - q]], dtype=torch.float64)
    assert hellinger(*bernoulli).item() == pytest.approx(expected, abs=1e-14)


def test_never_exceeds_1() -> None:
    """Disjoint distributions whose sums exceed 1 by rounding."""
    thirds = torch.full((2, 6), 0.0)
    thirds[0, :3] = thirds[1, 3:] = math.nextafter(1 / 3, 1) + 1e-7
    assert thirds[0].sum() > 1
    assert hellinger(*thirds).item() == 1


def test_close_distributions_keep_their_digits_in_float32() -> None:
    """As sqrt(1 - sum sqrt(p q)), a distance of 1e-5 would round to 0 or 3e-4 in float32."""
    V = 32_000
    p = torch.full((V,), 1 / V, dtype=torch.float64)
    q = p * (1 + 2e-5 * torch.where(torch.arange(V) % 2 == 0, 1, -1))
    expected = naive_hellinger(p.tolist(), q.tolist())
    assert 0.5e-5 < expected < 1e-5
    assert hellinger(p.float(), q.float()).item() == pytest.approx(expected, rel=2e-2)


def test_a_large_vocabulary_in_float32(normal: Normal) -> None:
    logits = normal(3, 2, 128_256) * 3
    p, q = probabilities(logits)
    expected = naive_hellinger(p.tolist(), q.tolist())
    assert hellinger_of_logits(*logits.float()).item() == pytest.approx(expected, abs=2e-7)
    sums = probabilities(logits.float()).double().sum(-1)
    assert sums.tolist() == pytest.approx([1, 1], abs=3e-7)  # torch's own float32 softmax: off by 3e-6


@given(seeds, st.integers(1, 4), st.integers(1, 3))
def test_batches_are_rows(normal: Normal, seed: int, B: int, N: int) -> None:
    a, b = normal(seed, 9) * 3, normal(seed + 1, B, N, 9) * 3
    distances = hellinger_of_logits(a, b)
    assert distances.shape == (B, N)
    for i in range(B):
        for j in range(N):
            alone = naive_hellinger(a.softmax(-1).tolist(), b[i, j].softmax(-1).tolist())
            assert distances[i, j].item() == pytest.approx(alone, abs=1e-14)


def test_at_least_float32() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]])
    for dtype, computed in [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),
    ]:
        assert probabilities(logits.to(dtype)).dtype == computed
        assert hellinger_of_logits(*logits.to(dtype)).dtype == computed
        assert hellinger(*logits.softmax(-1).to(dtype)).dtype == computed
    # These logits are exact in bfloat16, so the distance must be the same.
    assert hellinger_of_logits(*logits.bfloat16()).item() == hellinger_of_logits(*logits).item()


def test_a_token_that_the_model_excludes() -> None:
    a, b = torch.tensor([[0.0, -torch.inf, 0.0], [-torch.inf, 0.0, -torch.inf]])
    assert hellinger_of_logits(a, b).item() == 1
    assert hellinger_of_logits(a, a).item() == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(MIN_BASELINE, 1))
def test_metrics_equal_their_equations(distances: list[float], baseline: float) -> None:
    ns = pi_soft_ns(np.array(distances), baseline)
    nc = pi_soft_nc(np.array(distances), baseline)
    assert ns.dtype == nc.dtype == np.float64
    assert ns == pytest.approx([max(0, baseline - h) / baseline for h in distances])  # eq 17
    assert nc == pytest.approx([h / baseline for h in distances])  # eq 18
    assert ((ns >= 0) & (ns <= 1)).all()
    assert ns == pytest.approx(np.maximum(0, 1 - nc))


def test_metrics_at_their_limits() -> None:
    distances = np.array([0.0, 0.2, 0.4, 0.8])
    assert pi_soft_ns(distances, 0.4).tolist() == [1, 0.5, 0, 0]
    assert pi_soft_nc(distances, 0.4).tolist() == [0, 0.5, 1, 2]  # not clamped to 1


@pytest.mark.parametrize("baseline", [0.0, MIN_BASELINE / 2, math.nan])
def test_a_small_baseline_is_refused(baseline: float) -> None:
    for metric in (pi_soft_ns, pi_soft_nc):
        with pytest.raises(ValueError, match="skip"):
            metric(np.array([0.1]), baseline)


@given(seeds, st.integers(1, 12))
def test_limits_at_pi_0_and_1_through_a_model(normal: Normal, seed: int, U: int) -> None:
    """pi -> 0 gives NS = NC = 0, and pi -> 1 gives NS = NC = 1, exactly."""
    embeddings, W = normal(seed, U, 4), normal(seed + 1, 4, 10)
    attribution = normal(seed + 2, U).numpy()
    retained = np.stack([retention.probs for retention in retentions(attribution, (0, 1))])
    mask = keep_mask(uniforms(seed, 0, (0, 1), 3, U), retained)  # [P, N, U]

    def logits(mask: NDArray[Any]) -> Tensor:
        return torch.tanh((torch.from_numpy(mask)[..., None] * embeddings).sum(-2)) @ W

    P = probabilities(logits(np.ones(U)))
    baseline = hellinger(P, probabilities(logits(np.zeros(U)))).item()
    ns = pi_soft_ns(hellinger(P, probabilities(logits(mask))).numpy(), baseline)
    nc = pi_soft_nc(hellinger(P, probabilities(logits(~mask))).numpy(), baseline)
    assert ns == pytest.approx(np.array([[0.0] * 3, [1.0] * 3]), abs=1e-12)
    assert nc == pytest.approx(np.array([[0.0] * 3, [1.0] * 3]), abs=1e-12)
