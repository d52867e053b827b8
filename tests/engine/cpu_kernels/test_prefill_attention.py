"""Attention of a prompt's tokens against plain arithmetic in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradellm_engine.attention.ops import AttentionForm, attend, grouped, visibility

pytest.importorskip("numba")
from gradellm_engine.attention.fused import PromptSpan
from gradellm_engine.attention.numba_attention import NumbaPromptAttention
from gradellm_engine.cpu_kernels.tiles import PANEL

KERNELS = NumbaPromptAttention()
CPU = torch.device("cpu")


def exact(query: Tensor, keys: Tensor, values: Tensor, form: AttentionForm) -> Tensor:
    """[H, T, D], [G, N, D], [G, N, Dv] -> [T, H, Dv], float64"""
    (_, T, _), N = query.shape, keys.shape[1]
    seen = visibility(N - T, T, 0, N, form.window, CPU)
    state = attend(grouped(query.double(), len(keys)), keys.double(), values.double(), seen, form)
    return state.output().flatten(0, 1).transpose(0, 1)


def computed(query: Tensor, keys: Tensor, values: Tensor, form: AttentionForm) -> Tensor:
    """The output of one sequence's last T tokens, whose keys and values are those of the whole pool."""
    T, N = query.shape[1], keys.shape[1]
    return KERNELS.output(query, keys, values, KERNELS.panels([PromptSpan(0, T, 0, N - T)]), form)


@given(
    spans=st.lists(st.tuples(st.integers(1, 2 * PANEL + 3), st.integers(0, 60)), min_size=1, max_size=4),
    heads=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    widths=st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
def test_several_prompts(spans: list[tuple[int, int]], heads: tuple[int, int], widths: tuple[int, int]) -> None:
    """Each prompt's new keys and values are stored where it is in the pool, and its tokens see them and its own."""
    (G, r), (D, Dv), draw = heads, widths, torch.Generator().manual_seed(len(spans))
    T, P = sum(length for length, _ in spans), 3 + sum(length + before + 2 for length, before in spans)
    query = torch.randn(G * r, T, D, generator=draw)
    new_keys = torch.randn(T, G, D, generator=draw).transpose(0, 1)
    new_values = torch.randn(T, G, Dv, generator=draw).transpose(0, 1)
    pool_keys, pool_values = torch.randn(G, P, D, generator=draw), torch.randn(G, P, Dv, generator=draw)
    expected_pools = pool_keys.clone(), pool_values.clone()
    form, row, start, chunks, expected = AttentionForm(D**-0.5), 0, 3, [], []
    for length, before in spans:
        chunks.append(PromptSpan(row, length, start, before))
        rows, own = slice(row, row + length), slice(start + before, start + before + length)
        for pool, new in zip(expected_pools, (new_keys, new_values), strict=True):
            pool[:, own] = new[:, rows]
        keys, values = (pool[:, start : start + before + length] for pool in expected_pools)
        expected.append(exact(query[:, rows], keys, values, form))
        row, start = row + length, start + before + length + 2
    panels = KERNELS.panels(chunks)
    KERNELS.store(new_keys, new_values, pool_keys, pool_values, panels)
    assert torch.equal(pool_keys, expected_pools[0])
    assert torch.equal(pool_values, expected_pools[1])
    output = KERNELS.output(query, pool_keys, pool_values, panels, form)
    torch.testing.assert_close(output.double(), torch.cat(expected), rtol=0, atol=1e-5)


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
    keys, values = torch.randn(G, N, D, generator=draw), torch.randn(G, N, Dv, generator=draw)
    form = AttentionForm(D**-0.5, window=window)
    output = computed(query, keys, values, form)
    assert output.shape == (T, G * r, Dv)
    torch.testing.assert_close(output.double(), exact(query, keys, values, form), rtol=0, atol=1e-5)


def test_large_products_do_not_overflow() -> None:
    query, keys, values = torch.full((1, 40, 8), 60.0), torch.full((1, 40, 8), 60.0), torch.randn(1, 40, 8)
    form = AttentionForm(1.0)
    torch.testing.assert_close(
        computed(query, keys, values, form).double(), exact(query, keys, values, form), rtol=0, atol=1e-5
    )


def test_a_token_that_is_not_finite_spoils_no_earlier_one() -> None:
    query, keys, values = (torch.randn(1, 20, 8) for _ in range(3))
    query[0, 12] = torch.nan
    output = computed(query, keys, values, AttentionForm(0.3))
    assert output[:12].isfinite().all()
    assert output[12].isnan().all()
    assert output[13:].isfinite().all()
