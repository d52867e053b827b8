"""Products with a packed weight against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("numba")
from gradellm_engine.cpu_kernels.gemm import BLOCK, MAX_TILED_ROWS, pack, packed_linear, product
from gradellm_engine.cpu_kernels.tiles import HAS_BFLOAT16, MAX_ROWS, PANEL

ROWS = sorted({1, 2, MAX_ROWS - 1, MAX_ROWS, MAX_ROWS + 1, 2 * MAX_ROWS, 3 * MAX_ROWS + 2, MAX_TILED_ROWS + 1})


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def assert_right(actual: Tensor, exact: Tensor) -> None:
    assert actual.shape == exact.shape
    assert (actual.double() - exact).abs().max() <= 2e-6 * max(1.0, float(exact.abs().max()))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(PANEL, 1), (3 * PANEL, BLOCK), (5, BLOCK + 1), (100, 300)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_products(rows: int, num_outputs: int, num_inputs: int, *, has_bias: bool) -> None:
    x, weight = drawn(rows, num_inputs), drawn(num_outputs, num_inputs)
    bias = drawn(num_outputs) if has_bias else None
    exact = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    assert_right(product(x, pack(weight), num_outputs, bias), exact)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(
    ("num_outputs", "num_inputs"), [(PANEL, 2), (3 * PANEL, 2 * BLOCK), (5, BLOCK + 1), (100, 300)]
)
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_with_bfloat16_weights(rows: int, num_outputs: int, num_inputs: int, *, has_bias: bool) -> None:
    x, weight = drawn(rows, num_inputs), drawn(num_outputs, num_inputs).bfloat16()
    bias = drawn(num_outputs) if has_bias else None
    taken = x.bfloat16() if HAS_BFLOAT16 else x
    exact = taken.double() @ weight.double().t() + (0 if bias is None else bias.double())
    y = product(x, pack(weight), num_outputs, bias)
    assert y.dtype is torch.float32
    assert_right(y, exact)


@given(
    st.integers(1, 40),
    st.integers(1, 90),
    st.integers(1, 200),
    st.integers(1, 3),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_row_does_not_depend_on_the_others(
    rows: int, num_outputs: int, num_inputs: int, threads: int, dtype: torch.dtype
) -> None:
    before = torch.get_num_threads()
    x, packed = drawn(rows, num_inputs), pack(drawn(num_outputs, num_inputs).to(dtype))
    together = product(x, packed, num_outputs, None)
    torch.set_num_threads(threads)
    try:
        for row in (0, rows // 2, rows - 1):
            assert torch.equal(product(x[row : row + 1], packed, num_outputs, None)[0], together[row])
    finally:
        torch.set_num_threads(before)


def test_leading_dimensions_and_rows_that_are_not_contiguous() -> None:
    weight, x = drawn(6, 8), drawn(2, 8, 3).mT
    assert_right(product(x, pack(weight), 6, None), x.double() @ weight.double().t())
    assert product(torch.empty(0, 8), pack(weight), 6, None).shape == (0, 6)


def test_numbers_that_are_not_finite_stay_so() -> None:
    x = torch.tensor([[1.0, torch.inf], [torch.nan, 0.0]])
    y = product(x, pack(torch.ones(3, 2)), 3, None)
    assert y[0].eq(torch.inf).all()
    assert y[1].isnan().all()


def test_a_transform_computes_as_an_operator_does() -> None:
    """An operator without a rule for `torch.func.vmap` runs once for each item."""
    weight, x = drawn(6, 8), drawn(4, 2, 8)
    packed = pack(weight)
    batched = torch.func.vmap(lambda each: packed_linear(each, packed, 6, None))(x)
    assert torch.equal(batched, packed_linear(x, packed, 6, None))
