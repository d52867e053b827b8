"""The kernels against `gradellm_engine.attention.ops` in float64: on a GPU where there is one, else interpreted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from gradellm_engine.attention.ops import (
    AttentionForm,
    attend,
    attention_backward,
    grouped,
    value_gradients,
    visibility,
)
from gradellm_engine.attribution.grad_ellm import weighted_effect
from gradellm_engine.kv_cache.pool import Sequences
from gradellm_engine.params import Magnitude
from support.attention.kernels import DEVICE, close

pytest.importorskip("triton")
from gradellm_engine.attention.fused import FusedAttention, MapKind
from gradellm_engine.attention.triton_kernels import join_forward_kernel

# Triton's interpreter does not support bfloat16.
TYPES = [torch.float32, torch.bfloat16 if torch.cuda.is_available() else torch.float16]
EXACT = 1e-5  # what is float32
ROUNDED = {torch.float32: EXACT, torch.float16: 1e-3, torch.bfloat16: 6e-3}  # what is given back in the model's type
PLACES = 400  # of the pool
GAP = 3


def check(
    lengths: Sequence[int], *, T: int, G: int, r: int, D: int, Dv: int, window: int | None, width: int,
    dtype: torch.dtype, kind: MapKind, needs_input_grad: bool = True,
) -> None:  # fmt: skip
    """Every result, sequence by sequence."""
    B, H = len(lengths), G * r
    generator = torch.Generator().manual_seed(T + G + D)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    K, V, q, w = draw(G, PLACES, D), draw(G, PLACES, Dv), draw(B * T, H, D), draw(B * T, H, Dv)
    starts = [GAP + 100 * row for row in range(B)]
    form = AttentionForm(scaling=D**-0.5, window=window)
    starts_on_device, lengths_on_device = torch.tensor([starts, list(lengths)], device=DEVICE)
    over = Sequences(K.to(DEVICE), V.to(DEVICE), starts_on_device, lengths_on_device, T, width)
    kernels = FusedAttention(DEVICE)
    output, kept = kernels.forward(q.to(DEVICE).transpose(0, 1), over, form)
    back = kernels.backward(kept, w.to(DEVICE), over, form, kind, needs_input_grad=needs_input_grad)
    assert output.dtype == dtype
    assert len(back.maps) == {MapKind.NOTHING: 0, MapKind.PRODUCTS: 2}.get(kind, 1)
    assert (back.gradients is not None) == needs_input_grad
    for row, (start, n) in enumerate(zip(starts, lengths, strict=True)):
        first, row_slice = max(0, n - T - (window or n) + 1), slice(row * T, row * T + T)
        k, v = (x[:, start + first : start + n].double() for x in (K, V))
        seen = visibility(n - T, T, first, n - first, window, torch.device("cpu"))
        w_of_row = grouped(w[row_slice].transpose(0, 1).double(), G)
        exact = attend(grouped(q[row_slice].transpose(0, 1).double(), G), k, v, seen, form)
        U = value_gradients(exact, w_of_row)
        expected = exact.output().flatten(0, 1).transpose(0, 1)
        assert close(kept.output[row_slice], expected, EXACT)
        assert close(output[row_slice], expected, ROUNDED[dtype])
        maps = back.maps[:, row].sum(1)
        assert not maps[..., : width - n + first].any()
        visible = torch.ones(T, n - first, dtype=torch.bool) if seen is None else seen
        for actual, wanted in zip(maps[..., width - n + first :], expected_maps(kind, exact, w_of_row, U), strict=True):
            assert close(actual, wanted.masked_fill(~visible, 0), EXACT)
        if back.gradients is not None:
            gradients = attention_backward(exact, w_of_row, U, n - T - first)
            wanted_gradients = (gradients.dq.flatten(0, 1), gradients.dk, gradients.dv)
            for actual, wanted in zip(back.gradients, wanted_gradients, strict=True):
                assert close(actual[:, row_slice], wanted, ROUNDED[dtype])


def expected_maps(kind: MapKind, exact: object, w: Tensor, U: Tensor) -> list[Tensor]:
    magnitudes = {
        MapKind.SIGNED_SUM: Magnitude.SIGNED_SUM,
        MapKind.HEAD_ABS: Magnitude.HEAD_ABS,
        MapKind.KNOCKOUT: Magnitude.KNOCKOUT,
    }
    if kind is MapKind.NOTHING:
        return []
    if kind is MapKind.PRODUCTS:
        return [exact.S.sum((0, 1)), U.sum((0, 1))]  # type: ignore[attr-defined]
    return [weighted_effect(exact, w, U, magnitudes[kind])]  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kind", list(MapKind))
def test_one_token_of_each(dtype: torch.dtype, kind: MapKind) -> None:
    check([70, 1, 99], T=1, G=2, r=4, D=32, Dv=32, window=None, width=128, dtype=dtype, kind=kind)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kind", list(MapKind))
def test_odd_sizes_and_a_window(dtype: torch.dtype, kind: MapKind) -> None:
    check([40, 5], T=5, G=2, r=3, D=20, Dv=24, window=9, width=60, dtype=dtype, kind=kind)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_more_tokens_than_a_program_takes(dtype: torch.dtype) -> None:
    check([97, 20], T=16, G=1, r=8, D=64, Dv=64, window=None, width=97, dtype=dtype, kind=MapKind.PRODUCTS)


def test_the_lowest_layer() -> None:
    check([9], T=2, G=1, r=1, D=16, Dv=16, window=None, width=64, dtype=torch.float32, kind=MapKind.PRODUCTS,
          needs_input_grad=False)  # fmt: skip


@pytest.mark.parametrize(("S", "S2"), [(1, 1), (3, 4), (8, 8)])
def test_splits_are_merged_as_one_softmax(S: int, S2: int) -> None:
    """Each with its own maximum; a split may have no keys."""
    torch.manual_seed(S)
    count, Dv, N = 3, 5, 6
    z, V = 20 * torch.randn(S, count, N, dtype=torch.float64), torch.randn(S, count, N, Dv, dtype=torch.float64)
    if S > 1:
        z[1, 0] = -torch.inf
    highest = z.max(-1).values
    weights = (z - highest.nan_to_num(neginf=0)[..., None]).exp()
    partials = (weights[..., None] * V).sum(2)
    given = [x.float().to(DEVICE).contiguous() for x in (partials, highest, weights.sum(-1))]
    output = torch.full((count, Dv), torch.nan, dtype=torch.float16, device=DEVICE)
    exact, log_totals = (
        torch.full((count, Dv), torch.nan, device=DEVICE),
        torch.full((count,), torch.nan, device=DEVICE),
    )
    join_forward_kernel[(count,)](*given, output, exact, log_totals, count, S=S, S2=S2, DV=Dv, DV2=8, num_warps=1)
    rows, values = z.transpose(0, 1).flatten(1), V.transpose(0, 1).flatten(1, 2)
    expected = (rows.softmax(-1)[..., None] * values).sum(1)
    assert close(exact, expected, EXACT)
    assert close(output, expected, ROUNDED[torch.float16])
    assert close(log_totals, rows.logsumexp(-1), EXACT)
