"""Kernels of fused attention against plain arithmetic in float64, and where they run in tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gradellm_engine.attention.fused import FusedAttention, MapForm, MapKind
from gradellm_engine.attention.ops import (
    AttentionForm,
    AttentionState,
    InputGradient,
    attend,
    attention_backward,
    grouped,
    value_gradients,
    visibility,
)
from gradellm_engine.attribution.grad_ellm import weighted_effect
from gradellm_engine.kv_cache.pool import Sequences
from gradellm_engine.params import Magnitude

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # a CPU interprets Triton kernels
EXACT = 1e-5  # what is float32
ROUNDED = {torch.float32: EXACT, torch.float16: 1e-3, torch.bfloat16: 6e-3}  # what is given back in the model's type
PLACES = 500  # of the pool
GAP = 3

_MAGNITUDES = {
    MapKind.SIGNED_SUM: Magnitude.SIGNED_SUM,
    MapKind.HEAD_ABS: Magnitude.HEAD_ABS,
    MapKind.KNOCKOUT: Magnitude.KNOCKOUT,
    MapKind.HEAD_POSITIVE: Magnitude.SIGNED_SUM,
    MapKind.KNOCKOUT_POSITIVE: Magnitude.KNOCKOUT,
}


def close(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether they differ by no more, relative to the larger of the expected norm and one."""
    return float((actual.cpu().double() - expected).norm()) <= tolerance * max(1.0, float(expected.norm()))


def check(
    kernels: FusedAttention, device: torch.device, lengths: Sequence[int], *, T: int, G: int, r: int, D: int, Dv: int,
    window: int | None, width: int, dtype: torch.dtype, kind: MapKind, needs: InputGradient = InputGradient.ALL,
    excludes_sink: bool = False, sink: float = 0.0,
) -> None:  # fmt: skip
    """Every result, sequence by sequence; `sink` is added to the products with each sequence's first key."""
    B, H = len(lengths), G * r
    generator = torch.Generator().manual_seed(T + G + D)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    K, V, q, w = draw(G, PLACES, D), draw(G, PLACES, Dv), draw(B * T, H, D), draw(B * T, H, Dv)
    starts = [GAP + 100 * row for row in range(B)]
    form = AttentionForm(scaling=D**-0.5, window=window)
    for start in starts:  # all queries have the same first component
        q[..., 0], K[:, start, 0] = 1, K[:, start, 0] + sink * D**0.5
    starts_on_device, lengths_on_device = torch.tensor([starts, list(lengths)], device=device)
    over = Sequences(K.to(device), V.to(device), starts_on_device, lengths_on_device, T, width)
    computed = MapForm(kind, excludes_sink)
    output, kept = kernels.forward(q.to(device).transpose(0, 1), over, form, excludes_sink=excludes_sink)
    back = kernels.backward(kept, w.to(device), over, form, computed, needs)
    assert output.dtype == dtype
    assert len(back.maps) == {MapKind.NOTHING: 0, MapKind.PRODUCTS: 2}.get(kind, 1)
    assert (back.dv is not None) == (needs is not InputGradient.NOTHING)
    assert (back.dq is not None) == (back.dk is not None) == (needs is InputGradient.ALL)
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
        if excludes_sink:
            exact = replace(exact, sources=torch.arange(first, n) != 0)
        visible = torch.ones(T, n - first, dtype=torch.bool) if seen is None else seen
        for actual, wanted in zip(maps[..., width - n + first :], _maps(kind, exact, w_of_row, U), strict=True):
            assert close(actual, wanted.masked_fill(~visible, 0), EXACT)
        if not sink:  # a large key would hide the others' gradients
            gradients = attention_backward(exact, w_of_row, U, n - T - first)
            wanted_gradients = (gradients.dq.flatten(0, 1), gradients.dk, gradients.dv)
            for actual, wanted in zip((back.dq, back.dk, back.dv), wanted_gradients, strict=True):
                assert actual is None or close(actual[:, row_slice], wanted, ROUNDED[dtype])


def _maps(kind: MapKind, exact: AttentionState, w: Tensor, U: Tensor) -> list[Tensor]:
    if kind is MapKind.NOTHING:
        return []
    if kind is MapKind.PRODUCTS:
        return [exact.S.sum((0, 1)), U.sum((0, 1))]
    rectifies = kind in (MapKind.HEAD_POSITIVE, MapKind.KNOCKOUT_POSITIVE)
    return [weighted_effect(exact, w, U, _MAGNITUDES[kind], rectifies=rectifies)]
