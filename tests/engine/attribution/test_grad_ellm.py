"""The pure arithmetic of Grad-ELLM: identities, bounds and invariances of docs/methods/grad_ellm.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradellm_engine.attention.ops import AttentionForm, AttentionState, attend, value_gradients, visibility
from gradellm_engine.attribution import grad_sam
from gradellm_engine.attribution.grad_ellm import (
    cosine_similarity,
    layer_maps,
    min_max,
    squares,
    weighted_effect,
)
from gradellm_engine.attribution.in_pass import sum_layer_scores
from gradellm_engine.params import GradEllm, Loosening, Magnitude, Rectify, Rotary, Similarity

Normal = Callable[..., Tensor]
CPU = torch.device("cpu")
seeds = st.integers(0, 2**20)
lengths = st.integers(1, 4)
windows = st.sampled_from([None, 1, 3, 100])
UNLOOSENED = GradEllm(loosening=Loosening.NONE, rectify=Rectify.NONE)


@dataclass(frozen=True)
class Drawn:
    """A random layer: attention of T queries over N tokens, and the gradient of its output."""

    forward: AttentionState
    w: Tensor
    U: Tensor
    visible: Tensor | None


def drawn(normal: Normal, seed: int, form: AttentionForm, *, G: int = 2, r: int = 3, N: int = 6, T: int = 1) -> Drawn:
    D, Dv = 4, 5
    visible = visibility(N - T, T, 0, N, form.window, CPU)
    forward = attend(normal(seed, G, r, T, D), normal(seed + 1, G, N, D), normal(seed + 2, G, N, Dv), visible, form)
    w = normal(seed + 3, G, r, T, Dv)
    return Drawn(forward, w, value_gradients(forward, w), visible)


def layer_scores(
    layer: Drawn, switches: GradEllm, domain: Tensor | None, unrotated: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """h_i of one layer. [T, N]"""
    return sum_layer_scores([layer_maps(layer.forward, layer.w, layer.U, switches, unrotated)], switches, domain)


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


@given(seeds)
def test_min_max_over_everything_needs_no_domain(normal: Normal, seed: int) -> None:
    s = normal(seed, 3, 5)
    assert torch.equal(min_max(s, None), min_max(s, ones(3, 5)))
    assert torch.equal(min_max(s, ones(1, 5)), min_max(s, ones(3, 5)))  # one domain for all rows


@given(seeds, st.integers(1, 3), st.integers(1, 3), lengths)
def test_cosine_is_torch_s_over_concatenated_heads(normal: Normal, seed: int, G: int, r: int, T: int) -> None:
    q, K = normal(seed, G, r, T, 4), normal(seed + 1, G, 5, 4)
    actual = cosine_similarity(torch.einsum("grtd,gnd->tn", q, K), *squares(q, K))
    keys = K.repeat_interleave(r, 0).transpose(0, 1).reshape(5, -1)  # [N, H D]
    queries = q.flatten(0, 1).transpose(0, 1).reshape(T, -1)  # [T, H D]
    assert torch.allclose(actual, torch.cosine_similarity(queries[:, None], keys[None], dim=-1), atol=1e-12)
    assert actual.abs().max() <= 1 + 1e-12


def test_cosine_of_a_zero_vector_is_zero() -> None:
    K = torch.tensor([[[1.0, 2.0], [0.0, 0.0]]])
    q = torch.tensor([[[[2.0, 4.0], [0.0, 0.0]]]])
    cosines = cosine_similarity((q @ K.transpose(-1, -2)).sum((0, 1)), *squares(q, K))
    assert torch.allclose(cosines, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


@given(seeds, st.sampled_from([None, 0.8]), st.booleans(), lengths, windows)
def test_knockout_is_the_gradient_of_the_attention_logits(
    normal: Normal, seed: int, softcap: float | None, with_sinks: bool, T: int, window: int | None
) -> None:
    form = AttentionForm(0.7, softcap, normal(seed + 4, 6) if with_sinks else None, window)
    layer = drawn(normal, seed, form, T=T)
    Z = form.scaling * torch.einsum("grtd,gnd->grtn", layer.forward.q, layer.forward.K)
    if softcap is not None:
        Z = softcap * (Z / softcap).tanh()
    Z.requires_grad_()
    seen = Z if layer.visible is None else Z.masked_fill(~layer.visible, -torch.inf)
    logits = seen if form.sinks is None else torch.cat((seen, form.sinks.view(2, 3, 1, 1).expand(-1, -1, T, 1)), -1)
    o = torch.einsum("grtn,gnv->grtv", logits.softmax(-1)[..., : Z.shape[-1]], layer.forward.V)
    (gradient,) = torch.autograd.grad((o * layer.w).sum(), Z)
    actual = weighted_effect(layer.forward, layer.w, layer.U, Magnitude.KNOCKOUT)
    assert actual.shape == (T, 6)
    assert torch.allclose(actual, gradient.abs().sum((0, 1)), atol=1e-12)


def test_knockout_equals_the_change_from_removing_a_token(normal: Normal) -> None:
    """The first order of it, and so close where the token's weight is small."""
    layer = drawn(normal, 5, AttentionForm(0.01), G=1, r=1, N=400)
    knockout = weighted_effect(layer.forward, layer.w, layer.U, Magnitude.KNOCKOUT)[0]
    target = (layer.w * layer.forward.output()).sum()
    for i in (0, 17, 399):
        rest = [j for j in range(400) if j != i]
        without = attend(layer.forward.q, layer.forward.K[:, rest], layer.forward.V[:, rest], None, AttentionForm(0.01))
        change = ((layer.w * without.output()).sum() - target).abs()
        assert torch.allclose(knockout[i], change, rtol=0.01)


@given(seeds, lengths)
def test_absolute_sums_only_grow_with_detail(normal: Normal, seed: int, T: int) -> None:
    layer = drawn(normal, seed, AttentionForm(0.5), T=T)
    effect = {m: weighted_effect(layer.forward, layer.w, layer.U, m) for m in Magnitude}
    slack = 1e-12
    assert (effect[Magnitude.HEAD_ABS] >= effect[Magnitude.SIGNED_SUM].abs() - slack).all()
    assert (effect[Magnitude.CHANNEL_ABS] >= effect[Magnitude.HEAD_ABS] - slack).all()
    assert all((effect[m] >= 0).all() for m in Magnitude if m is not Magnitude.SIGNED_SUM)
    # All tokens' signed effects together are the output's own: sum_i a_i (w . v_i) = w . o
    total = (layer.w * layer.forward.output()).sum((0, 1, 3))
    assert torch.allclose(effect[Magnitude.SIGNED_SUM].sum(-1), total, atol=1e-12)


@given(seeds, lengths)
def test_weighted_effects_equal_a_plain_loop(normal: Normal, seed: int, T: int) -> None:
    layer = drawn(normal, seed, AttentionForm(0.5, window=3), T=T)
    A, V, w = layer.forward.A, layer.forward.V, layer.w
    terms = A[..., None] * w[:, :, :, None] * V[:, None, None]  # [G, r, T, N, Dv]
    expected = {
        Magnitude.SIGNED_SUM: terms.sum((0, 1, 4)),
        Magnitude.HEAD_ABS: terms.sum(4).abs().sum((0, 1)),
        Magnitude.CHANNEL_ABS: terms.abs().sum((0, 1, 4)),
    }
    for magnitude, effect in expected.items():
        assert torch.allclose(weighted_effect(layer.forward, w, layer.U, magnitude), effect, atol=1e-12)


@given(seed=seeds, T=lengths, magnitude=st.sampled_from(Magnitude), rectifies=st.booleans())
def test_without_the_sink_effects_are_those_of_attention_to_the_others(
    normal: Normal, seed: int, T: int, magnitude: Magnitude, *, rectifies: bool
) -> None:
    """As if the first key and value were not there, whatever they are; the first token has none."""
    layer = drawn(normal, seed, AttentionForm(0.5), T=T, N=7)
    forward = replace(layer.forward, sources=torch.arange(7) > 0)
    effect = weighted_effect(forward, layer.w, layer.U, magnitude, rectifies=rectifies)
    visible = None if layer.visible is None else layer.visible[:, 1:]
    others = attend(forward.q, forward.K[:, 1:], forward.V[:, 1:], visible, forward.form)
    expected = weighted_effect(others, layer.w, layer.U[..., 1:], magnitude, rectifies=rectifies)
    assert torch.allclose(effect[:, 1:], expected, atol=1e-12)
    assert not effect[:, 0].any()


@given(seeds, lengths)
def test_the_positive_part_of_each_head_is_grad_sam(normal: Normal, seed: int, T: int) -> None:
    """But for the number of heads: Grad-SAM is a mean, and attention weights are not negative."""
    layer = drawn(normal, seed, AttentionForm(0.5), T=T)
    effect = weighted_effect(layer.forward, layer.w, layer.U, Magnitude.SIGNED_SUM, rectifies=True)
    (mean,) = grad_sam.layer_maps(layer.forward, layer.w, layer.U, grad_sam.GradSam(), None)
    assert torch.allclose(effect, 6 * mean, atol=1e-12)


@given(seeds)
def test_with_one_head_signed_sum_and_head_abs_agree(normal: Normal, seed: int) -> None:
    layer = drawn(normal, seed, AttentionForm(0.5), G=1, r=1)
    signed = weighted_effect(layer.forward, layer.w, layer.U, Magnitude.SIGNED_SUM)
    assert torch.equal(signed.abs(), weighted_effect(layer.forward, layer.w, layer.U, Magnitude.HEAD_ABS))


# One layer's scores -------------------------------------------------------------------------------------------------

LAYER_SWITCHES = [
    *(
        GradEllm(similarity=s, rotary=p, rectify=r)
        for s in Similarity
        for p in Rotary
        for r in Rectify
        if r is not Rectify.PER_HEAD
    ),
    *(GradEllm(loosening=Loosening.NONE, rectify=r) for r in Rectify),
    *(replace(UNLOOSENED, magnitude=m) for m in Magnitude),
    replace(UNLOOSENED, magnitude=Magnitude.KNOCKOUT, rectify=Rectify.PER_HEAD),
]


def plain_scores(layer: Drawn, switches: GradEllm, domain: Tensor, unrotated: tuple[Tensor, Tensor]) -> Tensor:
    """Steps 2 to 5 of `grad_ellm`, a token at a time, heads concatenated."""
    G, r, T, N = layer.forward.A.shape
    rows = torch.zeros(T, N, dtype=torch.float64)
    q, K = unrotated if switches.rotary is Rotary.UNROTATED else (layer.forward.q, layer.forward.K)
    for t in range(T):
        w, query = layer.w[:, :, t].reshape(G * r, -1), q[:, :, t].reshape(-1)
        for i in range(N):
            v = layer.forward.V[:, i].repeat_interleave(r, 0)
            if switches.loosening is Loosening.NONE:
                a, u = layer.forward.A[:, :, t, i].reshape(-1), (w * v).sum(-1)
                mean = (layer.forward.A[:, :, t] * layer.U[:, :, t]).sum(-1).reshape(-1)
                if switches.rectify is Rectify.PER_HEAD:
                    center = mean if switches.magnitude is Magnitude.KNOCKOUT else 0
                    rows[t, i] = (a * (u - center)).relu().sum()
                    continue
                rows[t, i] = {
                    Magnitude.SIGNED_SUM: (a * u).sum(),
                    Magnitude.HEAD_ABS: (a * u).abs().sum(),
                    Magnitude.CHANNEL_ABS: (a[:, None] * w * v).abs().sum(),
                    Magnitude.KNOCKOUT: (a * (u - mean)).abs().sum(),
                }[switches.magnitude]
                continue
            s = [(query * K[:, j].repeat_interleave(r, 0).reshape(-1)).sum() for j in range(N)]
            if switches.similarity is Similarity.COSINE:
                s = [s[j] / query.norm() / K[:, j].repeat_interleave(r, 0).norm() for j in range(N)]
            inside = [s[j] for j in range(N) if domain[t, j]]
            if domain[t, i] and max(inside) > min(inside):
                rows[t, i] = (s[i] - min(inside)) / (max(inside) - min(inside)) * (w * v).sum()
    return rows.relu() if switches.rectify is Rectify.PER_LAYER else rows


@pytest.mark.parametrize("with_domain", [False, True], ids=["seen", "domain"])
@pytest.mark.parametrize("window", [None, 3])
def test_layer_scores_equal_a_plain_loop(normal: Normal, window: int | None, with_domain: bool) -> None:
    for seed, T in ((0, 1), (10, 3)):
        layer = drawn(normal, seed, AttentionForm(0.5, window=window), N=7, T=T)
        seen = ones(T, 7) if layer.visible is None else layer.visible
        domain = seen & (torch.arange(7) % 3 != 1) if with_domain else seen
        unrotated = normal(seed + 7, *layer.forward.q.shape), normal(seed + 8, *layer.forward.K.shape)
        for switches in LAYER_SWITCHES:
            # As the decoder hands them over: None for everywhere, and for a method that compares nothing.
            given_domain = None if domain.all() or switches.loosening is Loosening.NONE else domain
            other = unrotated if switches.rotary is Rotary.UNROTATED else None
            actual = layer_scores(layer, switches, given_domain, other)
            expected = plain_scores(layer, switches, domain, unrotated)
            assert expected.any() or switches.rectify is Rectify.PER_LAYER
            assert torch.allclose(actual, expected, atol=1e-12), switches
            assert not actual[~seen].any()


@given(seeds, lengths, windows, st.sampled_from(LAYER_SWITCHES))
def test_scores_of_many_rows_equal_each_row_alone(
    normal: Normal, seed: int, T: int, window: int | None, switches: GradEllm
) -> None:
    form = AttentionForm(0.5, window=window)
    layer = drawn(normal, seed, form, T=T)
    forward, w, N = layer.forward, layer.w, 6
    q, K = normal(seed + 7, *forward.q.shape), normal(seed + 8, *forward.K.shape)
    is_unrotated = switches.rotary is Rotary.UNROTATED
    scores = layer_scores(layer, switches, layer.visible, (q, K) if is_unrotated else None)
    for t in range(T):
        end, row = N - T + t + 1, slice(t, t + 1)
        first = form.first_visible(end - 1)
        alone = attend(forward.q[:, :, row], forward.K[:, first:end], forward.V[:, first:end], None, form)
        its_U = value_gradients(alone, w[:, :, row])
        unrotated = (q[:, :, row], K[:, first:end]) if is_unrotated else None
        expected = layer_scores(Drawn(alone, w[:, :, row], its_U, None), switches, None, unrotated)
        assert torch.allclose(scores[row, first:end], expected, atol=1e-12)
        assert not scores[t, :first].any()
        assert not scores[t, end:].any()


def test_dot_similarity_is_one_product_of_concatenated_heads(normal: Normal) -> None:
    layer = drawn(normal, 3, AttentionForm(0.5), T=2)
    expected = torch.einsum("grtd,gnd->tn", layer.forward.q, layer.forward.K)
    expected[0, -1] = -torch.inf  # not seen
    assert torch.allclose(layer_maps(layer.forward, layer.w, layer.U, GradEllm())[0] / 0.5, expected, atol=1e-12)


@given(seeds, st.integers(1, 3))
def test_a_domain_outside_a_layer_s_window_gives_zero(normal: Normal, seed: int, T: int) -> None:
    layer = drawn(normal, seed, AttentionForm(0.5, window=2), T=T)
    assert layer.visible is not None
    domain = layer.visible & (torch.arange(6) < 6 - T - 1)
    switches = GradEllm(rectify=Rectify.NONE)
    assert not domain.any()
    assert not layer_scores(layer, switches, domain).any()
    assert layer_scores(layer, switches, layer.visible).any()
