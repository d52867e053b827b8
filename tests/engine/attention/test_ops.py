"""Attention by hand against plain autograd and a plain loop, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradellm_engine.attention.ops import (
    AttentionForm,
    AttentionState,
    attend,
    attention_backward,
    attention_output,
    grouped_matmul,
    source_weights,
    value_gradients,
    visibility,
)

Normal = Callable[..., Tensor]
CPU = torch.device("cpu")
small = st.integers(1, 4)
lengths = st.integers(1, 6)
starts = st.integers(0, 6)
seeds = st.integers(0, 2**20)
softcaps = st.sampled_from([None, 0.5, 30.0])
windows = st.sampled_from([None, 1, 2, 3, 5, 100])


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


def seen_by(position: int, form: AttentionForm) -> list[int]:
    """The positions that a query sees, its own the last."""
    return [j for j in range(position + 1) if form.window is None or position - j < form.window]


def plain_attention(q: Tensor, K: Tensor, V: Tensor, start: int, form: AttentionForm) -> Tensor:
    """One query after the other, each over a copy of what it sees. [G, r, T, D] -> [G, r, T, Dv]"""
    G, r, T, D = q.shape
    K, V = K.repeat_interleave(r, 0), V.repeat_interleave(r, 0)
    outputs = []
    for t in range(T):
        seen = seen_by(start + t, form)
        A = plain_weights(plain_logits(q[:, :, t].reshape(G * r, D), K[:, seen], form), form)
        outputs.append((A[..., None] * V[:, seen]).sum(1))
    return torch.stack(outputs, 1).reshape(G, r, T, -1)


def attended(q: Tensor, K: Tensor, V: Tensor, start: int, form: AttentionForm) -> tuple[int, AttentionState]:
    """As a layer calls it: keys from the first that any query sees; that one's position, and the forward pass."""
    first = form.first_visible(start)
    visible = visibility(start, q.shape[2], first, K.shape[1] - first, form.window, CPU)
    return first, attend(q, K[:, first:], V[:, first:], visible, form)


def drawn_form(
    normal: Normal, seed: int, heads: int, softcap: float | None, sinks: bool, window: int | None
) -> AttentionForm:
    return AttentionForm(0.7, softcap, normal(seed, heads) if sinks else None, window)


@given(
    G=small,
    r=small,
    T=lengths,
    start=starts,
    D=small,
    Dv=small,
    window=windows,
    softcap=softcaps,
    with_sinks=st.booleans(),
    seed=seeds,
)
def test_each_query_equals_autograd_over_constant_earlier_tokens(
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
    """The diagonal rule: a query's gradient reaches its own key and value, and no earlier token's."""
    form = drawn_form(normal, seed + 4, G * r, softcap, with_sinks, window)
    N = start + T
    q, K, V, w = (
        normal(seed, G, r, T, D),
        normal(seed + 1, G, N, D),
        normal(seed + 2, G, N, Dv),
        normal(seed + 3, G, r, T, Dv),
    )
    first, forward = attended(q, K, V, start, form)
    U = value_gradients(forward, w)
    back = attention_backward(forward, w, U, start - first)
    S = 0.7 * torch.einsum("grtd,gnd->grtn", q, K[:, first:])
    assert close(forward.S.where(forward.A > 0, 0), S.where(forward.A > 0, 0))
    assert close(U, torch.einsum("grtv,gnv->grtn", w, V[:, first:]))

    for t in range(T):
        position, seen = start + t, seen_by(start + t, form)
        one_q = q[:, :, t].clone().requires_grad_()
        own_k = K[:, position].clone().requires_grad_()
        own_v = V[:, position].clone().requires_grad_()
        keys = torch.cat((K[:, seen[:-1]], own_k[:, None]), 1).repeat_interleave(r, 0)
        values = torch.cat((V[:, seen[:-1]], own_v[:, None]), 1).repeat_interleave(r, 0)
        A = plain_weights(plain_logits(one_q.reshape(G * r, D), keys, form), form)
        A.retain_grad()
        o = (A[..., None] * values).sum(1).reshape(G, r, Dv)
        torch.autograd.backward((o * w[:, :, t]).sum())
        assert one_q.grad is not None
        assert own_k.grad is not None
        assert own_v.grad is not None
        assert A.grad is not None

        columns = [j - first for j in seen]
        assert close(forward.A[:, :, t, columns], A.detach().reshape(G, r, -1))
        assert forward.A[:, :, t].count_nonzero() <= G * r * len(seen)  # nothing of what is not seen
        assert close(forward.output()[:, :, t], o.detach())
        assert close(U[:, :, t, columns], A.grad.reshape(G, r, -1))
        assert close(back.dq[:, :, t], one_q.grad)
        assert close(back.dk[:, t], own_k.grad)
        assert close(back.dv[:, t], own_v.grad)


@given(
    G=small,
    r=small,
    T=lengths,
    start=starts,
    D=small,
    Dv=small,
    window=windows,
    softcap=softcaps,
    with_sinks=st.booleans(),
    seed=seeds,
)
def test_outputs_equal_a_plain_loop(
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
    """By a stock kernel or by hand; for a first chunk, a later one and one token."""
    form = drawn_form(normal, seed + 3, G * r, softcap, with_sinks, window)
    N = start + T
    q, K, V = normal(seed, G, r, T, D), normal(seed + 1, G, N, D), normal(seed + 2, G, N, Dv)
    expected = plain_attention(q, K, V, start, form)
    first, forward = attended(q, K, V, start, form)
    visible = visibility(start, T, first, N - first, window, CPU)
    for keep_products in (False, True):
        o, kept = attention_output(q, K[:, first:], V[:, first:], visible, form, keep_products=keep_products)
        assert close(o, expected)
        assert kept is not None or not keep_products
    assert close(forward.output(), expected)


@given(T=lengths, start=starts, window=windows, softcap=softcaps, with_sinks=st.booleans(), seed=seeds)
def test_many_queries_equal_each_alone(
    normal: Normal, T: int, start: int, window: int | None, softcap: float | None, with_sinks: bool, seed: int
) -> None:
    """Weights, effects and gradients of a chunk are those of steps of one token, each with its own prefix."""
    G, r, D, Dv = 2, 3, 4, 5
    form = drawn_form(normal, seed + 4, G * r, softcap, with_sinks, window)
    N = start + T
    q, K, V, w = (
        normal(seed, G, r, T, D),
        normal(seed + 1, G, N, D),
        normal(seed + 2, G, N, Dv),
        normal(seed + 3, G, r, T, Dv),
    )
    first, forward = attended(q, K, V, start, form)
    U = value_gradients(forward, w)
    back = attention_backward(forward, w, U, start - first)
    for t in range(T):
        end, row = start + t + 1, slice(t, t + 1)
        its_first, alone = attended(q[:, :, row], K[:, :end], V[:, :end], end - 1, form)
        its_U = value_gradients(alone, w[:, :, row])
        its_back = attention_backward(alone, w[:, :, row], its_U, end - 1 - its_first)
        columns = slice(its_first - first, end - first)
        assert close(forward.A[:, :, row, columns], alone.A)
        assert close(forward.S[:, :, row, columns], alone.S)
        assert close(U[:, :, row, columns], its_U)
        assert close(back.dq[:, :, row], its_back.dq)
        assert close(back.dk[:, row], its_back.dk)
        assert close(back.dv[:, row], its_back.dv)


@given(B=small, start=starts, softcap=softcaps, with_sinks=st.booleans(), hidden=st.integers(0, 3), seed=seeds)
def test_many_sequences_equal_each_alone(
    normal: Normal, B: int, start: int, softcap: float | None, with_sinks: bool, hidden: int, seed: int
) -> None:
    """One query of each; the first columns of all but the last are hidden."""
    G, r, D, Dv, N = 2, 3, 4, 5, start + 4
    form = drawn_form(normal, seed + 4, G * r, softcap, with_sinks, None)
    q, K, V, w = (
        normal(seed, B, G, r, 1, D),
        normal(seed + 1, B, G, N, D),
        normal(seed + 2, B, G, N, Dv),
        normal(seed + 3, B, G, r, 1, Dv),
    )
    visible = torch.ones(B, 1, N, dtype=torch.bool)
    visible[:-1, :, :hidden] = False
    forward = attend(q, K, V, visible, form)
    back = attention_backward(forward, w, value_gradients(forward, w), N - 1)
    o, _ = attention_output(q, K, V, visible, form)
    for i in range(B):
        columns = slice(hidden if i < B - 1 else 0, None)
        alone = attend(q[i], K[i, :, columns], V[i, :, columns], None, form)
        its_back = attention_backward(alone, w[i], value_gradients(alone, w[i]), alone.K.shape[1] - 1)
        assert close(o[i], alone.output())
        assert close(forward.A[i, ..., columns], alone.A)
        assert close(back.dq[i], its_back.dq)
        assert close(back.dk[i], its_back.dk)
        assert close(back.dv[i], its_back.dv)


def test_a_query_s_gradient_does_not_depend_on_the_other_queries(normal: Normal) -> None:
    q, K, V, w = normal(0, 2, 2, 4, 3), normal(1, 2, 6, 3), normal(2, 2, 6, 5), normal(3, 2, 2, 4, 5)
    form = AttentionForm(0.5)

    def gradients(q: Tensor, w: Tensor) -> list[Tensor]:
        _, forward = attended(q, K, V, 2, form)
        back = attention_backward(forward, w, value_gradients(forward, w), 2)
        return [back.dq[:, :, 1], back.dk[:, 1], back.dv[:, 1]]

    is_other = torch.tensor([True, False, True, True])[:, None]
    changed = gradients(torch.where(is_other, 5 * q, q), torch.where(is_other, -3 * w, w))
    assert all(close(a, b) for a, b in zip(changed, gradients(q, w), strict=True))


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_outputs_keep_the_model_dtype(normal: Normal, dtype: torch.dtype, softcap: float | None) -> None:
    q, K, V = normal(0, 2, 2, 5, 4).to(dtype), normal(1, 2, 5, 4).to(dtype), normal(2, 2, 5, 4).to(dtype)
    form = AttentionForm(0.5, softcap, window=3)
    output, _ = attention_output(q, K, V, visibility(0, 5, 0, 5, 3, CPU), form)
    assert output.dtype == dtype
    expected = plain_attention(q.double(), K.double(), V.double(), 0, form)
    assert torch.allclose(output.double(), expected, atol=8 * torch.finfo(dtype).eps)
    single, _ = attention_output(q[:, :, 4:], K[:, 2:], V[:, 2:], None, form)
    assert single.dtype == dtype
    assert torch.allclose(single.double(), expected[:, :, 4:], atol=8 * torch.finfo(dtype).eps)


def test_a_sink_takes_attention_and_gives_no_value() -> None:
    q, K, V = torch.zeros(1, 1, 2, 2), torch.ones(1, 3, 2), torch.ones(1, 3, 2)
    _, forward = attended(q, K, V, 1, AttentionForm(1.0, sinks=torch.tensor([0.0])))
    third = 1 / 3
    assert torch.allclose(forward.A, torch.tensor([[[[third, third, 0], [0.25, 0.25, 0.25]]]]))
    assert torch.allclose(forward.output(), torch.tensor([[[[2 * third] * 2, [0.75] * 2]]]))


@given(start=starts, T=lengths, window=windows)
def test_visibility_counts(start: int, T: int, window: int | None) -> None:
    first = AttentionForm(1.0, window=window).first_visible(start)
    N = start + T - first
    seen = visibility(start, T, first, N, window, CPU)
    if seen is None:  # one query sees every key
        assert T == 1
        seen = torch.ones(1, N, dtype=torch.bool)
    assert seen.shape == (T, N)
    for t in range(T):
        visible = start + t + 1
        assert seen[t].sum() == (visible if window is None else min(visible, window))
        assert seen[t, start + t - first]  # itself
        assert not seen[t, start + t - first + 1 :].any()  # nothing later


@given(start=starts, first=starts, window=windows)
def test_visibility_of_one_query_beyond_its_window(start: int, first: int, window: int | None) -> None:
    """None means all: also where the caller hands over keys from before the window."""
    first = min(first, start)
    seen = visibility(start, 1, first, start + 1 - first, window, CPU)
    expected = [j in seen_by(start, AttentionForm(1.0, window=window)) for j in range(first, start + 1)]
    assert (expected if seen is None else seen[0].tolist()) == expected
    assert seen is not None or all(expected)


@pytest.mark.parametrize(
    ("window", "position", "first"), [(None, 9, 0), (1, 0, 0), (1, 9, 9), (4, 2, 0), (4, 3, 0), (4, 4, 1), (4, 9, 6)]
)
def test_first_visible(window: int | None, position: int, first: int) -> None:
    assert AttentionForm(1.0, window=window).first_visible(position) == first


def test_by_group_multiplies_each_group_with_its_own(normal: Normal) -> None:
    x, M = normal(0, 2, 3, 4, 5), normal(1, 2, 5, 6)
    assert close(grouped_matmul(x, M), torch.einsum("grta,gab->grtb", x, M))
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert close(grouped_matmul(strided, M), grouped_matmul(x, M))


def test_attention_to_oneself_only_returns_the_value(normal: Normal) -> None:
    q, K, V, w = normal(0, 1, 2, 4, 3), normal(1, 1, 4, 3), normal(2, 1, 4, 5), normal(3, 1, 2, 4, 5)
    only_itself = AttentionForm(1.0, window=1)
    output, _ = attention_output(q, K, V, visibility(0, 4, 0, 4, 1, CPU), only_itself)
    assert close(output, V[:, None].expand(-1, 2, -1, -1))
    alone = (attended(q[:, :, :1], K[:, :1], V[:, :1], 0, AttentionForm(1.0))[1], w[:, :, :1])
    many = (attended(q, K, V, 0, only_itself)[1], w)
    for forward, w_of_case in (alone, many):
        assert close(forward.output(), forward.V[:, None].expand(-1, 2, -1, -1))
        back = attention_backward(forward, w_of_case, value_gradients(forward, w_of_case), 0)
        assert back.dq.abs().max() < 1e-12  # its weight is 1, whatever it asks
        assert back.dk.abs().max() < 1e-12
        assert close(back.dv, w_of_case.sum(1))


def test_gradients_of_capped_products_vanish_where_the_cap_is_reached(normal: Normal) -> None:
    q, K, V, w = 100 * normal(0, 1, 2, 3, 4), normal(1, 1, 5, 4), normal(2, 1, 5, 4), normal(3, 1, 2, 3, 4)
    _, capped = attended(q, K, V, 2, AttentionForm(1.0, softcap=0.5))
    U = value_gradients(capped, w)
    back = attention_backward(capped, w, U, 2)
    uncapped = attention_backward(replace(capped, form=AttentionForm(1.0)), w, U, 2)
    assert back.dq.abs().max() < 1e-2 * uncapped.dq.abs().max()
    assert close(back.dv, uncapped.dv)


def test_weights_of_sources_are_summed_over_the_sources() -> None:
    """In float32 1 - a_0 is 0 where the first token has all but 1e-9 of the attention: its digits would be lost."""
    A = torch.tensor([1 - 3e-9, 1e-9, 2e-9])[None, None, None]
    q, keys = torch.zeros(1, 1, 1, 2), torch.zeros(1, 3, 2)
    state = AttentionState(q, keys, keys, A, A, AttentionForm(1.0), sources=torch.tensor([False, True, True]))
    assert torch.allclose(source_weights(state)[0, 0, 0], torch.tensor([0, 1 / 3, 2 / 3]))
    assert not source_weights(replace(state, A=A * torch.tensor([1, 1e-4, 1e-4])))[0, 0, 0].any()  # below 1e-12
    assert torch.equal(source_weights(replace(state, sources=None)), A)
