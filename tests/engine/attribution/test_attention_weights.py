"""Attention weights as scores: means over heads and layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradellm_engine.attention.ops import AttentionForm, attend, value_gradients, visibility
from gradellm_engine.attribution.attention_weights import Attention, heat_map, layer_maps
from gradellm_engine.attribution.in_pass import sum_layer_scores

G, R, N, T = 2, 3, 6, 2


@pytest.mark.parametrize("window", [None, 3])
def test_scores_are_the_mean_of_heads_and_layers(normal: Callable[..., Tensor], window: int | None) -> None:
    """What a token attends to adds up to one; what it does not see has none."""
    visible = visibility(N - T, T, 0, N, window, torch.device("cpu"))
    assert visible is not None
    switches, maps, expected = Attention(layers=(1, 4)), [], torch.zeros(T, N, dtype=torch.float64)
    for seed in (0, 10):
        q, K, V = normal(seed, G, R, T, 4), normal(seed + 1, G, N, 4), normal(seed + 2, G, N, 5)
        for t in range(T):
            for g in range(G):
                for h in range(R):
                    z = (0.5 * K[g] @ q[g, h, t]).masked_fill(~visible[t], -torch.inf)
                    expected[t] += z.softmax(-1) / (2 * G * R)
        state, w = attend(q, K, V, visible, AttentionForm(0.5, window=window)), normal(seed + 3, G, R, T, 5)
        maps.append(layer_maps(state, w, value_gradients(state, w), switches, None))
    scores = heat_map(sum_layer_scores(maps, switches, visible), switches)
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(scores.sum(-1), torch.ones(T, dtype=torch.float64))
    assert not scores[~visible].any()


def test_a_sink_takes_its_part_of_the_attention(normal: Callable[..., Tensor]) -> None:
    sinks = torch.zeros(G * R, dtype=torch.float64)
    q = torch.zeros(G, R, 1, 4, dtype=torch.float64)  # all weights are equal
    state = attend(q, normal(1, G, N, 4), normal(2, G, N, 5), None, AttentionForm(0.5, sinks=sinks))
    (scores,) = layer_maps(state, q, q, Attention(), None)
    torch.testing.assert_close(scores, torch.full((1, N), 1 / (N + 1), dtype=torch.float64))


def test_the_last_layer_is_the_default() -> None:
    assert Attention().selected_layers(5) == (4,)
    assert Attention(layers=None).selected_layers(3) == (0, 1, 2)
