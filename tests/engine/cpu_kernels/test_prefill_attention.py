"""Attention of a prompt's tokens against plain arithmetic in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradellm_engine.attention.ops import AttentionForm, attend, grouped, visibility

pytest.importorskip("numba")
from gradellm_engine.attention.numba_attention import NumbaAttention
from gradellm_engine.cpu_kernels.tiles import PANEL

KERNELS = NumbaAttention()
CPU = torch.device("cpu")


def exact(query: Tensor, keys: Tensor, values: Tensor, form: AttentionForm) -> Tensor:
    """[H, T, D], [G, N, D], [G, N, Dv] -> [T, H, Dv], float64"""
    (_, T, _), N = query.shape, keys.shape[1]
    seen = visibility(N - T, T, 0, N, form.window, CPU)
    state = attend(grouped(query.double(), len(keys)), keys.double(), values.double(), seen, form)
    return state.output().flatten(0, 1).transpose(0, 1)


@given(
    T=st.integers(1, 2 * PANEL + 3),
    before=st.integers(0, 150),
    heads=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    widths=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    window=st.none() | st.integers(1, 120),
)
def test_outputs(T: int, before: int, heads: tuple[int, int], widths: tuple[int, int], window: int | None) -> None:
    (G, r), (D, Dv), N = heads, widths, before + T
    draw = torch.Generator().manual_seed(T + N + D)
    query = torch.randn(T, G * r, D, generator=draw).transpose(0, 1)  # as the model has it
    pooled = torch.randn(G, N + 7, D, generator=draw), torch.randn(G, N + 7, Dv, generator=draw)
    keys, values = (x[:, 3 : 3 + N] for x in pooled)
    form = AttentionForm(D**-0.5, window=window)
    output = KERNELS.prefill(query, keys, values, form)
    assert output.shape == (T, G * r, Dv)
    torch.testing.assert_close(output.double(), exact(query, keys, values, form), rtol=0, atol=1e-5)


def test_large_products_do_not_overflow() -> None:
    query, keys, values = torch.full((1, 40, 8), 60.0), torch.full((1, 40, 8), 60.0), torch.randn(1, 40, 8)
    form = AttentionForm(1.0)
    torch.testing.assert_close(
        KERNELS.prefill(query, keys, values, form).double(), exact(query, keys, values, form), rtol=0, atol=1e-5
    )


def test_a_token_that_is_not_finite_spoils_no_earlier_one() -> None:
    query, keys, values = (torch.randn(1, 20, 8) for _ in range(3))
    query[0, 12] = torch.nan
    output = KERNELS.prefill(query, keys, values, AttentionForm(0.3))
    assert output[:12].isfinite().all()
    assert output[12].isnan().all()
    assert output[13:].isfinite().all()
