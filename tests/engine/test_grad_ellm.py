"""The pure arithmetic of Grad-ELLM: identities, bounds and invariances of METHOD section 2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradellm_engine.attention import AttentionForm, OneQuery, one_query_forward, value_gradients
from gradellm_engine.grad_ellm import (
    LayerContribution,
    cosine_similarity,
    dot_similarity,
    heat_map,
    layer_contribution,
    min_max,
    weighted_effect,
)
from gradellm_engine.settings import GradEllm, Loosening, Magnitude, Rectify, Similarity

Normal = Callable[..., Tensor]
seeds = st.integers(0, 2**20)
UNLOOSENED = GradEllm(loosening=Loosening.NONE, rectify=Rectify.NONE)


@dataclass(frozen=True)
class Drawn:
    """A random layer: attention over N tokens, and the gradient of its output."""

    forward: OneQuery
    w: Tensor
    U: Tensor


def drawn(normal: Normal, seed: int, form: AttentionForm, G: int = 2, r: int = 3, N: int = 6) -> Drawn:
    D, Dv = 4, 5
    forward = one_query_forward(normal(seed, G, r, D), normal(seed + 1, G, N, D), normal(seed + 2, G, N, Dv), form)
    w = normal(seed + 3, G, r, Dv)
    return Drawn(forward, w, value_gradients(forward, w))


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.bool)


scores = st.lists(st.floats(-100, 100), min_size=1, max_size=8)


@given(scores, st.data())
def test_min_max_lies_in_0_1_and_reaches_both(values: list[float], data: st.DataObject) -> None:
    mask = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    s, domain = torch.tensor([values], dtype=torch.float64), torch.tensor([mask])
    lam = min_max(s, domain)
    assert lam.min() >= 0
    assert lam.max() <= 1
    assert (lam[~domain] == 0).all()
    inside = s[domain]
    if len(inside) and inside.max() > inside.min():
        assert lam[domain].min() == 0
        assert lam[domain].max() == 1
        order = inside.argsort()
        assert (lam[domain][order].diff() >= 0).all()
    else:
        assert not lam.any()


@pytest.mark.parametrize("domain", [[True] * 4, [False] * 4, [False, True, False, False]])
def test_min_max_of_equal_values_or_nothing_is_zero(domain: list[bool]) -> None:
    assert torch.equal(min_max(torch.full((1, 4), 3.5), torch.tensor([domain])), torch.zeros(1, 4))


@given(seeds, st.floats(0.01, 100), st.floats(-100, 100))
def test_min_max_ignores_scale_and_offset(normal: Normal, seed: int, scale: float, offset: float) -> None:
    s, domain = normal(seed, 3, 7), normal(seed + 1, 3, 7) > -0.5
    assert torch.allclose(min_max(s * scale + offset, domain), min_max(s, domain), atol=1e-9)


@given(seeds)
def test_min_max_rows_are_independent(normal: Normal, seed: int) -> None:
    s, domain = normal(seed, 3, 5), normal(seed + 1, 3, 5) > 0
    rows = [min_max(s[i : i + 1], domain[i : i + 1]) for i in range(3)]
    assert torch.equal(min_max(s, domain), torch.cat(rows))


@given(seeds, st.integers(1, 3), st.integers(1, 3))
def test_cosine_is_torch_s_over_concatenated_heads(normal: Normal, seed: int, G: int, r: int) -> None:
    q, K = normal(seed, G, r, 4), normal(seed + 1, G, 5, 4)
    actual = cosine_similarity(q, K, q @ K.transpose(-1, -2))
    keys = K.repeat_interleave(r, 0).transpose(0, 1).reshape(5, -1)  # [N, H D]
    assert torch.allclose(actual, torch.cosine_similarity(q.reshape(1, -1), keys), atol=1e-12)
    assert actual.abs().max() <= 1 + 1e-12


def test_cosine_of_a_zero_vector_is_zero() -> None:
    K = torch.tensor([[[1.0, 2.0], [0.0, 0.0]]])
    q = torch.tensor([[[2.0, 4.0]]])
    assert torch.allclose(cosine_similarity(q, K, q @ K.transpose(-1, -2)), torch.tensor([1.0, 0.0]))
    assert torch.equal(cosine_similarity(0 * q, K, 0 * q @ K.transpose(-1, -2)), torch.zeros(2))


@given(seeds, st.sampled_from([None, 0.8]), st.booleans())
def test_knockout_is_the_gradient_of_the_attention_logits(
    normal: Normal, seed: int, softcap: float | None, with_sinks: bool
) -> None:
    form = AttentionForm(0.7, softcap, normal(seed + 4, 6) if with_sinks else None)
    layer = drawn(normal, seed, form)
    Z = layer.forward.R * form.scaling
    if softcap is not None:
        Z = softcap * (Z / softcap).tanh()
    Z.requires_grad_()
    sinks = Z if form.sinks is None else torch.cat((Z, form.sinks.view(2, 3, 1)), -1)
    o = sinks.softmax(-1)[..., : Z.shape[-1]] @ layer.forward.V
    (gradient,) = torch.autograd.grad((o * layer.w).sum(), Z)
    actual = weighted_effect(layer.forward, layer.w, layer.U, Magnitude.KNOCKOUT)
    assert torch.allclose(actual, gradient.abs().sum((0, 1)), atol=1e-12)


def test_knockout_is_what_taking_a_token_out_changes(normal: Normal) -> None:
    """The first order of it, and so close where the token's weight is small."""
    layer = drawn(normal, 5, AttentionForm(0.01), G=1, r=1, N=400)
    knockout = weighted_effect(layer.forward, layer.w, layer.U, Magnitude.KNOCKOUT)
    target = (layer.w * layer.forward.o).sum()
    for i in (0, 17, 399):
        rest = [j for j in range(400) if j != i]
        without = one_query_forward(
            layer.forward.q, layer.forward.K[:, rest], layer.forward.V[:, rest], AttentionForm(0.01)
        )
        change = ((layer.w * without.o).sum() - target).abs()
        assert torch.allclose(knockout[i], change, rtol=0.01)


@given(seeds)
def test_absolute_sums_only_grow_with_detail(normal: Normal, seed: int) -> None:
    layer = drawn(normal, seed, AttentionForm(0.5))
    effect = {m: weighted_effect(layer.forward, layer.w, layer.U, m) for m in Magnitude}
    slack = 1e-12
    assert (effect[Magnitude.HEAD_ABS] >= effect[Magnitude.SIGNED_SUM].abs() - slack).all()
    assert (effect[Magnitude.CHANNEL_ABS] >= effect[Magnitude.HEAD_ABS] - slack).all()
    assert all((effect[m] >= 0).all() for m in Magnitude if m is not Magnitude.SIGNED_SUM)
    # All tokens' signed effects together are the output's own: sum_i a_i (w . v_i) = w . o
    assert torch.allclose(effect[Magnitude.SIGNED_SUM].sum(), (layer.w * layer.forward.o).sum(), atol=1e-12)


@given(seeds)
def test_with_one_head_signed_sum_and_head_abs_agree(normal: Normal, seed: int) -> None:
    layer = drawn(normal, seed, AttentionForm(0.5), G=1, r=1)
    signed = weighted_effect(layer.forward, layer.w, layer.U, Magnitude.SIGNED_SUM)
    assert torch.equal(signed.abs(), weighted_effect(layer.forward, layer.w, layer.U, Magnitude.HEAD_ABS))


def test_layer_contribution_takes_what_the_switches_say(normal: Normal) -> None:
    layer = drawn(normal, 1, AttentionForm(0.5))
    forward, w, U = layer.forward, layer.w, layer.U
    dot = layer_contribution(forward, w, U, 3, GradEllm())
    assert dot.first == 3
    assert dot.similarity is not None
    assert torch.equal(dot.similarity, dot_similarity(forward.R))
    assert torch.allclose(dot.effect, torch.einsum("grv,gnv->n", w, forward.V), atol=1e-12)
    cosine = layer_contribution(forward, w, U, 0, GradEllm(similarity=Similarity.COSINE))
    assert cosine.similarity is not None
    assert torch.equal(cosine.similarity, cosine_similarity(forward.q, forward.K, forward.R))
    other = (normal(7, *forward.q.shape), normal(8, *forward.K.shape))
    unrotated = layer_contribution(forward, w, U, 0, GradEllm(), other)
    assert unrotated.similarity is not None
    assert torch.allclose(unrotated.similarity, torch.einsum("grd,gnd->n", *other), atol=1e-12)
    assert torch.equal(unrotated.effect, dot.effect)
    assert layer_contribution(forward, w, U, 0, UNLOOSENED).similarity is None


def contributions(normal: Normal, seed: int, firsts: list[int], S: int, switches: GradEllm) -> list[LayerContribution]:
    return [
        LayerContribution(
            first,
            normal(seed + i, S - first) if switches.loosening is Loosening.MIN_MAX else None,
            normal(seed + i + 50, S - first),
        )
        for i, first in enumerate(firsts)
    ]


first_positions = st.lists(st.integers(0, 6), min_size=1, max_size=4)


@given(seeds, first_positions, st.sampled_from(Loosening), st.sampled_from(Rectify), st.booleans())
def test_heat_map_equals_a_plain_loop(
    normal: Normal, seed: int, firsts: list[int], loosening: Loosening, rectify: Rectify, with_domain: bool
) -> None:
    S = 7
    switches = GradEllm(loosening=loosening, rectify=rectify)
    layers = contributions(normal, seed, firsts, S, switches)
    domain = normal(seed + 99, S) > 0 if with_domain and loosening is Loosening.MIN_MAX else None
    expected = [0.0] * S
    for layer in layers:
        inside = [i for i in range(layer.first, S) if domain is None or domain[i]]
        for i in range(layer.first, S):
            effect = layer.effect[i - layer.first].item()
            if layer.similarity is not None:
                s = {j: layer.similarity[j - layer.first].item() for j in inside}
                spread = max(s.values(), default=0) - min(s.values(), default=0)
                effect *= (s[i] - min(s.values())) / spread if i in s and spread > 0 else 0
            expected[i] += max(0.0, effect) if rectify is Rectify.PER_LAYER else effect
    if rectify is Rectify.TOTAL:
        expected = [max(0.0, value) for value in expected]
    actual = heat_map(layers, S, switches, domain)
    assert torch.allclose(actual, torch.tensor(expected, dtype=torch.float64), atol=1e-12)


@given(seeds, first_positions, st.sampled_from(Loosening))
def test_rectify_relations(normal: Normal, seed: int, firsts: list[int], loosening: Loosening) -> None:
    S = 7

    def scored(rectify: Rectify) -> Tensor:
        switches = GradEllm(loosening=loosening, rectify=rectify)
        return heat_map(contributions(normal, seed, firsts, S, switches), S, switches)

    signed, total, per_layer = scored(Rectify.NONE), scored(Rectify.TOTAL), scored(Rectify.PER_LAYER)
    assert torch.equal(signed.relu(), total)
    assert (per_layer >= total - 1e-12).all()
    assert (per_layer >= 0).all()
    unseen = min(firsts)
    assert not per_layer[:unseen].any()  # no layer sees them
    if len(firsts) == 1:
        assert torch.equal(per_layer, total)


@given(seeds, first_positions)
def test_heat_map_is_the_sum_of_its_layers(normal: Normal, seed: int, firsts: list[int]) -> None:
    layers = contributions(normal, seed, firsts, 7, GradEllm())
    alone = torch.stack([heat_map([layer], 7, GradEllm()) for layer in layers])
    assert torch.allclose(heat_map(layers, 7, GradEllm()), alone.sum(0), atol=1e-12)


def test_a_domain_outside_a_layer_s_window_gives_zero(normal: Normal) -> None:
    layers = contributions(normal, 0, [4], 7, GradEllm(rectify=Rectify.NONE))
    domain = torch.tensor([True] * 4 + [False] * 3)
    assert not heat_map(layers, 7, GradEllm(rectify=Rectify.NONE), domain).any()
    assert not min_max(normal(1, 1, 5), ~ones(1, 5)).any()
