"""Every kernel against the product in float64, and which is chosen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradellm_engine.layers import gemm
from gradellm_engine.layers.gemm import (
    MAX_ONEDNN_ROWS,
    MAX_TILED_ROWS,
    MIN_ONEDNN_WEIGHTS,
    MIN_PACKED_WEIGHTS,
    MIN_TILED_WEIGHTS,
    TRANSPOSED_OPERANDS_MULTIPLE,
    WIDE_OUTPUT_RATIO,
    GemmWeight,
    Kernel,
    layout_for_backward,
    row_tiled_matmul,
    row_tiled_matmul_transposed,
)
from gradellm_engine.layers.packing import Packing, packings
from gradellm_engine.utils.torch_compat import has_onednn_linear

Normal = Callable[..., Tensor]

IN = 512
HAS_MKL: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]


def weight_of(num_weights: int, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(num_weights // IN, IN, dtype=dtype)


@pytest.mark.parametrize("count", [1, 2, 6])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 2), (4,)])
def test_row_tiles_compute_the_full_product(normal: Normal, count: int, shape: tuple[int, ...]) -> None:
    weight, x, g = normal(0, 12, 5).double(), normal(1, *shape, 5).double(), normal(2, *shape, 12).double()
    torch.testing.assert_close(row_tiled_matmul(x, weight, count), x @ weight.t())
    torch.testing.assert_close(row_tiled_matmul_transposed(g, weight, count), g @ weight)


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize(
    "rows",
    [
        1,
        MAX_TILED_ROWS,
        MAX_TILED_ROWS + 1,
        TRANSPOSED_OPERANDS_MULTIPLE,
        TRANSPOSED_OPERANDS_MULTIPLE + 1,
        MAX_ONEDNN_ROWS,
        MAX_ONEDNN_ROWS + 1,
    ],
)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_weights", [MIN_TILED_WEIGHTS - IN, MIN_TILED_WEIGHTS, MIN_ONEDNN_WEIGHTS])
def test_product_and_gradient_are_those_of_float64(
    normal: Normal, rows: int, bias: bool, num_weights: int, by_columns: bool
) -> None:
    weight = weight_of(num_weights)
    if by_columns:
        weight = weight.t().contiguous().t()
    b = normal(3, len(weight)).float() if bias else None
    frozen = GemmWeight(weight, b)
    x, g = normal(1, 1, rows, IN).float(), normal(2, 1, rows, len(weight)).float()
    product, gradient = (
        x.double() @ weight.double().t() + (0 if b is None else b.double()),
        g.double() @ weight.double(),
    )
    for actual, exact in ((frozen.product(x), product), (frozen.gradient(g), gradient)):
        assert actual.shape == exact.shape
        assert (actual - exact).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.parametrize("packing", packings(torch.float32), ids=lambda packing: packing.library)
@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_packed_weights_compute_the_same_for_any_number_of_rows(
    normal: Normal, bias: bool, by_columns: bool, packing: Packing
) -> None:
    weight = weight_of(MIN_PACKED_WEIGHTS)
    if by_columns:
        weight = weight.t().contiguous().t()
    b = normal(3, len(weight)).float() if bias else None
    frozen = GemmWeight(weight, b)
    frozen.pack(packing)
    for has_transposed in (False, True):  # without it, gradients take the other kernels
        if has_transposed:
            frozen.pack_transposed()
        for rows in (1, 2, 3, 7, 16, 33, 64, 100, 300):
            x, g = normal(1, 1, rows, IN).float(), normal(2, 1, rows, len(weight)).float()
            assert frozen.kernel(x) is Kernel.PACKED
            product = x.double() @ weight.double().t() + (0 if b is None else b.double())
            for actual, exact in ((frozen.product(x), product), (frozen.gradient(g), g.double() @ weight.double())):
                assert actual.shape == exact.shape
                assert (actual - exact).abs().max() <= 1e-5 * exact.abs().max()
    frozen.unpack()
    assert frozen.kernel(x) is Kernel.DEFAULT


def test_what_can_be_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    layouts = {torch.float32: packings(torch.float32)[0]}
    monkeypatch.setattr(gemm, "best_packing", layouts.get)
    assert GemmWeight(weight_of(MIN_PACKED_WEIGHTS), None).can_be_packed
    assert not GemmWeight(weight_of(MIN_PACKED_WEIGHTS - IN), None).can_be_packed
    assert not GemmWeight(weight_of(MIN_PACKED_WEIGHTS, torch.bfloat16), None).can_be_packed


def test_kernel_selection_by_size_dtype_and_rows(normal: Normal) -> None:
    def chosen(weight: Tensor) -> list[Kernel]:
        frozen = GemmWeight(weight, None)
        return [
            frozen.kernel(torch.empty(1, rows, IN)) for rows in (MAX_TILED_ROWS, MAX_ONEDNN_ROWS, MAX_ONEDNN_ROWS + 1)
        ]

    default = [Kernel.DEFAULT] * 3
    row_tiles = Kernel.ROW_TILES if HAS_MKL else Kernel.DEFAULT
    onednn = Kernel.ONEDNN if has_onednn_linear() else Kernel.DEFAULT
    assert chosen(weight_of(MIN_ONEDNN_WEIGHTS)) == [row_tiles if HAS_MKL else onednn, onednn, Kernel.DEFAULT]
    assert chosen(weight_of(MIN_ONEDNN_WEIGHTS - 2 * IN)) == [row_tiles, Kernel.DEFAULT, Kernel.DEFAULT]
    assert chosen(weight_of(MIN_TILED_WEIGHTS - 2 * IN)) == default
    assert chosen(weight_of(MIN_ONEDNN_WEIGHTS, torch.float64)) == default
    assert chosen(weight_of(MIN_ONEDNN_WEIGHTS, torch.bfloat16)) == default
    assert GemmWeight(torch.empty(MIN_ONEDNN_WEIGHTS // IN + 1, IN), None).num_row_tiles == 1  # an odd number of rows


def test_wide_weights_are_stored_by_columns() -> None:
    wide, other = torch.randn(WIDE_OUTPUT_RATIO * IN, IN), torch.randn(WIDE_OUTPUT_RATIO * IN - 2, IN)
    stored = layout_for_backward(wide)
    assert torch.equal(stored, wide)
    assert stored.t().is_contiguous() == HAS_MKL
    assert layout_for_backward(other) is other


def test_does_without_libraries_that_pytorch_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "has_onednn_linear", lambda: False)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    frozen = GemmWeight(weight_of(MIN_ONEDNN_WEIGHTS), None)
    assert frozen.kernel(torch.empty(1, 1, IN)) is Kernel.DEFAULT


def test_gradients_are_batched_by_vmap(normal: Normal) -> None:
    frozen = GemmWeight(weight_of(MIN_ONEDNN_WEIGHTS), None)
    g = normal(0, 3, 1, 1, len(frozen.weight)).float()
    together = torch.func.vmap(frozen.gradient)(g)
    for batched, row in zip(together, g, strict=True):
        torch.testing.assert_close(batched, frozen.gradient(row), rtol=1e-4, atol=1e-4)
