"""Attention of whole sequences against a plain loop, with and without gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradellm_engine.attention.ops import AttentionForm, AttentionState, grouped
from gradellm_engine.passes.full_sequence import FullSequenceAttention, ungrouped

Normal = Callable[..., Tensor]
B, G, R, T, D, DV = 2, 2, 3, 6, 4, 5
FORMS = [AttentionForm(0.5), AttentionForm(0.5, window=3), AttentionForm(0.5, softcap=0.7)]


def qkv(normal: Normal) -> tuple[Tensor, Tensor, Tensor]:
    return normal(1, B, G * R, T, D), normal(2, B, G, T, D), normal(3, B, G, T, DV)


def plain_output(query: Tensor, key: Tensor, value: Tensor, form: AttentionForm) -> Tensor:
    """One sequence, head and token at a time. [B, T, H, Dv]"""
    rows = []
    for b in range(B):
        for t in range(T):
            first = form.first_visible(t)
            for h in range(G * R):
                z = form.scaling * key[b, h // R, first : t + 1] @ query[b, h, t]
                z = z if form.softcap is None else form.softcap * (z / form.softcap).tanh()
                rows.append(z.softmax(0) @ value[b, h // R, first : t + 1])
    return torch.stack(rows).view(B, T, G * R, DV)


@pytest.mark.parametrize("form", FORMS, ids=["plain", "window", "soft cap"])
def test_outputs_and_gradients_are_those_of_a_plain_loop(normal: Normal, form: AttentionForm) -> None:
    tensors, attention = qkv(normal), FullSequenceAttention()
    expected = plain_output(*tensors, form)
    with torch.no_grad():
        torch.testing.assert_close(attention.output(0, *tensors, form), expected)
    for tensor in tensors:
        tensor.requires_grad_()
    output = attention.output(1, *tensors, form)
    torch.testing.assert_close(output, expected)
    w = normal(4, *output.shape)
    torch.testing.assert_close(
        torch.autograd.grad((output * w).sum(), tensors),
        torch.autograd.grad((plain_output(*tensors, form) * w).sum(), tensors),
    )


@pytest.mark.parametrize("with_gradients", [False, True])
def test_padding_at_the_end_changes_nothing_before_it(normal: Normal, with_gradients: bool) -> None:
    query, key, value = qkv(normal)
    padded_query, padded_key, padded_value = (
        torch.cat((x[:, :, :4], torch.full_like(x[:, :, 4:], 1e6)), 2) for x in (query, key, value)
    )
    attention, form = FullSequenceAttention(), AttentionForm(0.5)
    with torch.set_grad_enabled(with_gradients):
        of_all = attention.output(0, query, key, value, form)
        of_padded = attention.output(0, padded_query, padded_key, padded_value, form)
    torch.testing.assert_close(of_padded[:, :4], of_all[:, :4])


def test_constant_weights_pass_gradients_to_values_alone(normal: Normal) -> None:
    """dl/dv_j = sum_t a_tj w_t, over the heads that share the value; the output is the same."""
    states: list[AttentionState] = []
    attention = FullSequenceAttention(weights_are_constant=True, watch=lambda index, state: states.append(state))
    query, key, value = (tensor.requires_grad_() for tensor in qkv(normal))
    output = attention.output(0, query, key, value, FORMS[0])
    torch.testing.assert_close(output, plain_output(query, key, value, FORMS[0]))
    w = normal(4, *output.shape)
    dq, dk, dv = torch.autograd.grad((output * w).sum(), (query, key, value), allow_unused=True)
    assert dq is None
    assert dk is None
    expected = torch.einsum("bgrtj,btgrv->bgjv", states[0].A, w.view(B, T, G, R, DV))
    torch.testing.assert_close(dv, expected)


@torch.no_grad()
def test_watch_gets_every_layer_s_weights_in_float32(normal: Normal) -> None:
    seen: dict[int, AttentionState] = {}
    query, key, value = (tensor.bfloat16() for tensor in qkv(normal))
    attention = FullSequenceAttention(watch=seen.__setitem__)
    outputs = [attention.output(index, query, key, value, form) for index, form in enumerate(FORMS[:2])]
    assert [output.dtype for output in outputs] == [torch.bfloat16] * 2
    assert list(seen) == [0, 1]
    positions = torch.arange(T)
    for state, window in ((seen[0], T), (seen[1], 3)):
        assert state.A.dtype == torch.float32
        distance = positions[:, None] - positions[None, :]
        assert torch.equal(state.A != 0, ((distance >= 0) & (distance < window)).expand(B, G, R, T, T))
        torch.testing.assert_close(state.A.sum(-1), torch.ones(B, G, R, T))


def test_ungrouped_heads_are_in_the_model_s_order(normal: Normal) -> None:
    heads = normal(1, B, G * R, T, DV)
    assert torch.equal(ungrouped(grouped(heads, G)), heads.transpose(1, 2))
