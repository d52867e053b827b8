"""Attention by hand against plain autograd and a plain loop, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradellm_engine.attention import (
    AttentionForm,
    many_queries_forward,
    one_query_backward,
    one_query_forward,
    one_query_output,
    value_gradients,
    visibility,
)

Normal = Callable[..., Tensor]
CPU = torch.device("cpu")
small = st.integers(1, 4)
seeds = st.integers(0, 2**20)
softcaps = st.sampled_from([None, 0.5, 30.0])


def close(actual: Tensor, expected: Tensor) -> bool:
    return actual.shape == expected.shape and torch.allclose(actual, expected, rtol=1e-9, atol=1e-12)


def plain_logits(q: Tensor, K: Tensor, form: AttentionForm) -> Tensor:
    """Query heads [H, D] over repeated keys [H, N, D]. -> [H, N]"""
    Z = (q[:, None] * K).sum(-1) * form.scaling
    return Z if form.softcap is None else form.softcap * (Z / form.softcap).tanh()


def plain_weights(Z: Tensor, form: AttentionForm) -> Tensor:
    """The softmax written out, with the sink in the denominator. [H, N]"""
    exponentials = Z.exp()
    total = exponentials.sum(-1, keepdim=True)
    if form.sinks is not None:
        total = total + form.sinks.exp()[:, None]
    return exponentials / total


@given(G=small, r=small, N=st.integers(1, 7), D=small, Dv=small, softcap=softcaps, with_sinks=st.booleans(), seed=seeds)
def test_one_query_equals_autograd(
    normal: Normal, G: int, r: int, N: int, D: int, Dv: int, softcap: float | None, with_sinks: bool, seed: int
) -> None:
    form = AttentionForm(0.7, softcap, normal(seed + 4, G * r) if with_sinks else None)
    q = normal(seed, G, r, D).requires_grad_()
    K = normal(seed + 1, G, N, D).requires_grad_()
    V = normal(seed + 2, G, N, Dv).requires_grad_()
    w = normal(seed + 3, G, r, Dv)

    A = plain_weights(plain_logits(q.reshape(-1, D), K.repeat_interleave(r, 0), form), form)
    A.retain_grad()
    o = (A[..., None] * V.repeat_interleave(r, 0)).sum(1).reshape(G, r, Dv)
    torch.autograd.backward((o * w).sum())
    assert q.grad is not None
    assert K.grad is not None
    assert V.grad is not None
    assert A.grad is not None

    with torch.no_grad():
        forward = one_query_forward(q, K, V, form)
        U = value_gradients(forward, w)
        back = one_query_backward(forward, w, U, form)
        assert close(one_query_output(q, K, V, form), o)
        assert close(forward.R, torch.einsum("grd,gnd->grn", q, K))
    assert close(forward.A, A.detach().reshape(G, r, N))
    assert close(forward.o, o.detach())
    assert close(U, A.grad.reshape(G, r, N))
    assert close(back.dq, q.grad)
    assert close(back.dk, K.grad[:, -1])
    assert close(back.dv, V.grad[:, -1])


def plain_attention(q: Tensor, K: Tensor, V: Tensor, start: int, form: AttentionForm) -> Tensor:
    """One query after the other, each over a copy of what it sees. [H, T, D] -> [H, T, Dv]"""
    repeats = q.shape[0] // K.shape[0]
    K, V = K.repeat_interleave(repeats, 0), V.repeat_interleave(repeats, 0)
    outputs = []
    for t in range(q.shape[1]):
        position = start + t
        seen = [j for j in range(K.shape[1]) if j <= position and (form.window is None or position - j < form.window)]
        A = plain_weights(plain_logits(q[:, t], K[:, seen], form), form)
        outputs.append((A[..., None] * V[:, seen]).sum(1))
    return torch.stack(outputs, 1)


windows = st.sampled_from([None, 1, 2, 3, 5, 100])


@given(
    G=small,
    r=small,
    T=st.integers(1, 6),
    start=st.integers(0, 6),
    D=small,
    Dv=small,
    window=windows,
    softcap=softcaps,
    with_sinks=st.booleans(),
    seed=seeds,
)
def test_many_queries_equal_a_plain_loop(
    normal: Normal,
    G: int,
    r: int,
    T: int,
    start: int,
    D: int,
    Dv: int,
    window: int | None,
    softcap: float | None,
    with_sinks: bool,
    seed: int,
) -> None:
    form = AttentionForm(0.4, softcap, normal(seed + 3, G * r) if with_sinks else None, window)
    N = start + T
    q, K, V = normal(seed, G * r, T, D), normal(seed + 1, G, N, D), normal(seed + 2, G, N, Dv)
    assert close(many_queries_forward(q, K, V, start, form), plain_attention(q, K, V, start, form))


@given(N=st.integers(1, 8), window=windows, softcap=softcaps, with_sinks=st.booleans(), seed=seeds)
def test_one_query_equals_the_last_of_many(
    normal: Normal, N: int, window: int | None, softcap: float | None, with_sinks: bool, seed: int
) -> None:
    G, r, D = 2, 2, 3
    form = AttentionForm(0.6, softcap, normal(seed + 3, G * r) if with_sinks else None, window)
    q, K, V = normal(seed, G * r, N, D), normal(seed + 1, G, N, D), normal(seed + 2, G, N, D)
    first = form.first_visible(N - 1)
    one = one_query_forward(q[:, -1].reshape(G, r, D), K[:, first:], V[:, first:], form)
    assert close(one.o.reshape(G * r, D), many_queries_forward(q, K, V, 0, form)[:, -1])


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_outputs_keep_the_model_dtype(normal: Normal, dtype: torch.dtype, softcap: float | None) -> None:
    q, K, V = (normal(i, 2, 5, 4).to(dtype) for i in range(3))
    form = AttentionForm(0.5, softcap, window=3)
    output = many_queries_forward(q, K, V, 0, form)
    assert output.dtype == dtype
    expected = plain_attention(q.double(), K.double(), V.double(), 0, form)
    assert torch.allclose(output.double(), expected, atol=8 * torch.finfo(dtype).eps)
    one = one_query_output(q[:, 4:].transpose(0, 1), K[:1, 2:], V[:1, 2:], form)
    assert one.dtype == dtype
    assert torch.allclose(one[0, 0].double(), expected[0, 4], atol=8 * torch.finfo(dtype).eps)


def test_a_sink_takes_attention_and_gives_no_value() -> None:
    q, K, V = torch.zeros(1, 1, 2), torch.ones(1, 3, 2), torch.ones(1, 3, 2)
    forward = one_query_forward(q, K, V, AttentionForm(1.0, sinks=torch.tensor([0.0])))
    assert torch.equal(forward.A, torch.full((1, 1, 3), 0.25))
    assert torch.equal(forward.o, torch.full((1, 1, 2), 0.75))


@given(
    start=st.integers(0, 6),
    T=st.integers(1, 6),
    window=windows,
)
def test_visibility_counts(start: int, T: int, window: int | None) -> None:
    first = AttentionForm(1.0, window=window).first_visible(start)
    seen = visibility(start, T, first, start + T, window, CPU)
    assert seen.shape == (T, start + T - first)
    for t in range(T):
        visible = start + t + 1
        assert seen[t].sum() == (visible if window is None else min(visible, window))
        assert seen[t, start + t - first]  # itself
        assert not seen[t, start + t - first + 1 :].any()  # nothing later


@pytest.mark.parametrize(
    ("window", "position", "first"), [(None, 9, 0), (1, 0, 0), (1, 9, 9), (4, 2, 0), (4, 3, 0), (4, 4, 1), (4, 9, 6)]
)
def test_first_visible(window: int | None, position: int, first: int) -> None:
    assert AttentionForm(1.0, window=window).first_visible(position) == first


def test_with_one_token_or_a_window_of_one_a_token_gives_its_own_value(normal: Normal) -> None:
    q, K, V = normal(0, 2, 4, 3), normal(1, 1, 4, 3), normal(2, 1, 4, 5)
    assert close(many_queries_forward(q, K, V, 0, AttentionForm(1.0, window=1)), V.expand(2, -1, -1))
    one = one_query_forward(q[:, :1].transpose(0, 1), K[:, :1], V[:, :1], AttentionForm(1.0))
    assert close(one.o, V[:, :1].expand(1, 2, -1))
    w = normal(3, 1, 2, 5)
    back = one_query_backward(one, w, value_gradients(one, w), AttentionForm(1.0))
    assert back.dq.abs().max() < 1e-12  # its weight is 1, whatever it asks
    assert back.dk.abs().max() < 1e-12
    assert close(back.dv, w.sum(1))
