"""Norms, gated activations, rotary embeddings and distributions against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import silu
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

pytest.importorskip("numba")
from gradellm_engine.cpu_kernels import elementwise as kernels

SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 90))
EPS = 1e-5


def drawn(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_close(actual: Tensor, exact: Tensor) -> None:
    torch.testing.assert_close(actual.double(), exact, rtol=1e-5, atol=1e-5 * max(1.0, float(exact.abs().max())))


@given(SHAPES, st.sampled_from([1e-3, 1.0, 1e3]))
def test_rms_norms(shape: tuple[int, int], scale: float) -> None:
    x, weight, gradient = drawn(0, *shape, scale=scale).requires_grad_(), drawn(1, shape[1]), drawn(2, *shape)
    exact = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight
    (by_x,) = torch.autograd.grad(exact, x, gradient)
    given_x, given_weight = x.detach().float(), weight.float()
    assert_close(kernels.rms_norm(given_x, given_weight, EPS), exact.detach())
    assert_close(kernels.rms_norm_backward(given_x, given_weight, EPS, gradient.float()), by_x)


@given(SHAPES, st.sampled_from([1.0, 30.0]))
def test_gated_activations(shape: tuple[int, int], scale: float) -> None:
    rows, width = shape
    both, gradient = drawn(0, rows, 2 * width, scale=scale).requires_grad_(), drawn(1, *shape)
    gate, up = both[:, :width], both[:, width:]
    exact = silu(gate) * up
    (by_both,) = torch.autograd.grad(exact, both, gradient)
    fused = both.detach().float()  # a fused product's rows
    given_gate, given_up = fused[:, :width], fused[:, width:]
    assert_close(kernels.silu_mul(given_gate, given_up), exact.detach())
    assert_close(torch.cat(kernels.silu_mul_backward(given_gate, given_up, gradient.float()), -1), by_both)
    slope = torch.sigmoid(gate.detach())  # silu(gate) / gate
    by_gate, by_up = kernels.silu_mul_backward(given_gate, given_up, gradient.float(), propagates_relevance=True)
    assert_close(by_gate, gradient * up.detach() * slope / 2)
    assert_close(by_up, gradient * gate.detach() * slope / 2)


def test_extreme_activations() -> None:
    gate = torch.tensor([0.0, -1e30, 1e30, -100.0, 100.0, torch.inf, torch.nan]).repeat(5)
    actual, expected = kernels.silu_mul(gate, torch.ones_like(gate)), silu(gate)
    torch.testing.assert_close(actual, expected, equal_nan=True)


@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 3), st.integers(1, 33))
def test_rotary_embeddings_are_bit_identical(T: int, H: int, G: int, half: int) -> None:
    D = 2 * half
    q, k = (drawn(seed, 1, T, n * D).float().view(1, T, n, D).transpose(1, 2) for seed, n in ((0, H), (1, G)))
    cos, sin, dq, dk = drawn(2, 1, T, D).float(), drawn(3, 1, T, D).float(), q * 2, k * 3
    for signed, x in ((1.0, (q, k)), (-1.0, (dq, dk))):
        actual = kernels.rotate_halves(*x, cos, sin, signed)
        for one, expected in zip(actual, apply_rotary_pos_emb(*x, cos, signed * sin), strict=True):
            assert torch.equal(one, expected)


def test_several_threads_and_leading_dimensions() -> None:
    x, weight = drawn(0, 3, 400, 64).float(), drawn(1, 64).float()
    flat = kernels.rms_norm(x.view(-1, 64), weight, EPS)
    assert torch.equal(kernels.rms_norm(x, weight, EPS).view(-1, 64), flat)
    gated = kernels.silu_mul(x, x)
    assert torch.equal(gated.view(-1, 64), kernels.silu_mul(x.view(-1, 64), x.view(-1, 64)))
    strided = drawn(0, 3, 400, 128).float()[..., :64]
    assert torch.equal(kernels.silu_mul(strided, x), kernels.silu_mul(strided.contiguous(), x))


@given(st.integers(1, 4), st.integers(1, 90) | st.integers(1000, 3000), st.sampled_from([0.1, 1.0, 50.0]))
def test_the_best_and_the_logsumexp_of_rows(rows: int, width: int, scale: float) -> None:
    logits = drawn(width, rows, width, scale=scale).float()
    logits[0] = logits[0].round()  # the first of equals is the best
    best, logsumexp = kernels.best_and_logsumexp(logits)
    assert torch.equal(best, logits.argmax(-1))
    assert_close(logsumexp, logits.double().logsumexp(-1))
    assert torch.equal(kernels.best_and_logsumexp(logits[-1:])[1], logsumexp[-1:])


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 70, 1999])
def test_the_logsumexp_of_numbers_that_are_not_finite(number: float, place: int) -> None:
    logits = torch.zeros(3, 2000)
    logits[1, place] = number
    logits[2] = -torch.inf
    _, logsumexp = kernels.best_and_logsumexp(logits)
    assert logsumexp.isfinite().tolist() == [True, False, False]


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 20))
def test_rows_are_stored_and_loaded(count: int, width: int, more: int) -> None:
    x, pool = drawn(0, count, width + more).float()[:, more:], torch.zeros(9, width)
    rows = torch.randperm(9, generator=torch.Generator().manual_seed(width))[:count]
    kernels.store_rows(x, pool, rows)
    assert torch.equal(pool[rows], x)
    assert not pool[[row for row in range(9) if row not in rows]].any()
    assert torch.equal(kernels.load_rows(pool, rows.flip(0)), x.flip(0)[None])
