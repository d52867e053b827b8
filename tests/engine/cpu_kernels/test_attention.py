"""Attention kernels on long rows; test_numba_attention.py has all results of their launcher."""

from __future__ import annotations

import pytest
import torch

from gradellm_engine.attention.fused import MapKind
from support.attention.kernels import check

pytest.importorskip("numba")
from gradellm_engine.attention.numba_attention import NumbaAttention


@pytest.mark.parametrize("lengths", [[97], [64, 65, 1]])
def test_blocks_of_keys(lengths: list[int]) -> None:
    check(
        NumbaAttention(), torch.device("cpu"), lengths, T=1, G=2, r=3, D=64, Dv=48, window=None, width=100,
        dtype=torch.float32, kind=MapKind.PRODUCTS,
    )  # fmt: skip


def test_scores_of_any_size_and_numbers_that_are_not_finite() -> None:
    kernels = NumbaAttention()
    from gradellm_engine.attention.ops import AttentionForm
    from gradellm_engine.kv_cache.pool import Sequences

    K, V = torch.randn(1, 9, 4), torch.randn(1, 9, 4)
    over = Sequences(K, V, torch.tensor([0]), torch.tensor([9]), 1, 9)
    q = 1000 * K[:, 4:5]  # one key takes all attention
    output, _ = kernels.forward(q, over, AttentionForm(1.0))
    expected = (q @ K.mT).softmax(-1) @ V
    torch.testing.assert_close(output[:, 0], expected[0])
    output, _ = kernels.forward(torch.full_like(q, torch.nan), over, AttentionForm(1.0))
    assert output.isnan().all()
