"""Grad-SAM: attention weights times the positive part of their gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradellm_engine.attention.ops import AttentionForm, attend, value_gradients, visibility
from gradellm_engine.attribution.grad_sam import GradSam, heat_map, layer_maps
from gradellm_engine.attribution.in_pass import sum_layer_scores

G, R, N = 2, 3, 6
Normal = Callable[..., Tensor]


def layer(normal: Normal, seed: int, T: int, sign: int = 1) -> tuple[Tensor, Tensor]:
    """A random layer's map, and the same by autograd and a plain loop. [T, N] each"""
    visible = visibility(N - T, T, 0, N, None, torch.device("cpu"))
    q, K, V = normal(seed, G, R, T, 4), normal(seed + 1, G, N, 4), normal(seed + 2, G, N, 5)
    w = sign * normal(seed + 3, G, R, T, 5)
    state = attend(q, K, V, visible, AttentionForm(0.5))
    A = state.A.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(torch.stack([(A[g] @ V[g] * w[g]).sum() for g in range(G)]).sum(), A)
    expected = torch.zeros(T, N, dtype=torch.float64)
    for g in range(G):
        for h in range(R):
            expected += A[g, h].detach() * gradient[g, h].clamp(min=0) / (G * R)
    (actual,) = layer_maps(state, w, value_gradients(state, w), GradSam(), None)
    return actual, expected


@given(st.integers(0, 2**20), st.integers(1, 3))
def test_maps_are_attention_times_its_positive_gradient(normal: Normal, seed: int, T: int) -> None:
    actual, expected = layer(normal, seed, T)
    torch.testing.assert_close(actual, expected)
    assert (actual >= 0).all()


def test_evidence_against_the_target_counts_for_its_negation(normal: Normal) -> None:
    """Maps for and against a target differ by the mean over heads of a u."""
    for_target, against = (layer(normal, 3, 1, sign)[0] for sign in (1, -1))
    assert not torch.equal(for_target, against)
    q, K, V = normal(3, G, R, 1, 4), normal(4, G, N, 4), normal(5, G, N, 5)
    state = attend(q, K, V, None, AttentionForm(0.5))
    signed = (state.A * value_gradients(state, normal(6, G, R, 1, 5))).mean((0, 1))
    torch.testing.assert_close(for_target - against, signed)


def test_scores_are_the_mean_of_the_layers(normal: Normal) -> None:
    layers, switches = [layer(normal, seed, 2)[0] for seed in (0, 10, 20)], GradSam(layers=(0, 2, 3))
    scores = heat_map(sum_layer_scores([(maps,) for maps in layers], switches, None), switches)
    torch.testing.assert_close(scores, sum(layers) / 3)
