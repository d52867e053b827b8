"""Tiled attention against a stock kernel in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gradellm_engine.attention.cpu_tiled import TiledAttention
from gradellm_engine.attention.ops import AttentionForm, visibility


@pytest.mark.parametrize("shape", [(3, 4, 2, 50, 50, 8, 8), (5, 6, 3, 41, 70, 16, 24), (2, 2, 2, 3, 9, 32, 8)])
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("tile_weights", [1, 3000, 2**18])
def test_tiles_equal_a_stock_kernel(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], window: int | None, tile_weights: int
) -> None:
    monkeypatch.setattr("gradellm_engine.attention.cpu_tiled.TILE_WEIGHTS", tile_weights)
    B, H, G, T, N, D, Dv = shape
    torch.manual_seed(0)
    query, K, V = torch.randn(B, H, T, D), torch.randn(B, G, N, D), torch.randn(B, N, G, Dv).transpose(1, 2)
    visible = visibility(N - T, T, 0, N, window, query.device)
    assert isinstance(visible, Tensor)
    form = AttentionForm(0.3, window=window)
    assert TiledAttention.is_faster(query, V, form)
    tiled = TiledAttention()
    q, k, v = query.double(), K.double(), V.double()
    expected = F.scaled_dot_product_attention(q, k, v, visible, scale=0.3, enable_gqa=True).transpose(1, 2)
    for _ in range(2):  # the second time in the same buffer
        assert torch.allclose(tiled.output(query, K, V, visible, form).double(), expected, atol=1e-6)
