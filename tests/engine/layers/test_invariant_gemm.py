"""GEMMs whose rows do not depend on each other: padding, blocks, and the choice of a kernel."""

from __future__ import annotations

import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradellm_engine.layers import invariant_gemm as products
from gradellm_engine.layers.gemm import GemmWeight
from gradellm_engine.layers.invariant_gemm import Product, invariant_product

SHAPES = st.sampled_from([(64, 64), (172, 64), (64, 172), (5, 7), (261, 64), (768, 768), (1024, 768), (768, 1024)])


@settings(max_examples=30)
@given(SHAPES, st.integers(1, 130), st.booleans(), st.booleans(), st.randoms(use_true_random=False))
def test_a_rows_product_does_not_depend_on_other_rows(
    shape: tuple[int, int], num_rows: int, by_columns: bool, has_bias: bool, rng: random.Random
) -> None:
    """Forward and backward, in any batch, at any row and at any memory alignment."""
    generator = torch.Generator().manual_seed(rng.randrange(2**32))
    weight = torch.randn(shape, generator=generator)
    frozen = GemmWeight(
        weight.t().contiguous().t() if by_columns else weight,
        torch.randn(shape[0], generator=generator) if has_bias else None,
    )
    frozen.enable_batch_invariance()
    for width, product, expected in (
        (shape[1], frozen.product, lambda x: torch.nn.functional.linear(x, frozen.weight, frozen.bias)),
        (shape[0], frozen.gradient, lambda g: g @ frozen.weight),
    ):
        rows = torch.randn((num_rows, width), generator=generator)
        together = product(rows[None])[0]
        torch.testing.assert_close(together, expected(rows), rtol=1e-4, atol=1e-4)
        for position in rng.sample(range(num_rows), min(num_rows, 5)):
            assert torch.equal(product(rows[position : position + 1]), together[position : position + 1])


def test_a_kernel_that_is_not_invariant_is_not_chosen() -> None:
    """The next one is, or smaller blocks; at last rows one by one."""
    weight = torch.randn(24, 40)

    def shows(x: Tensor) -> Tensor:  # sums in another order for each number of rows
        return x.roll(len(x), -1) @ weight.roll(len(x), -1).t()

    products._chosen.clear()
    try:
        product = invariant_product(weight, None, [shows])
        assert (product.min_rows, product.multiple, product.max_rows) in ((16, 16, 16), (1, 1, 1))
        x = torch.randn(21, 40)
        assert torch.equal(product(x)[20:], product(x[20:]))
    finally:
        products._chosen.clear()


def test_a_product_pads_and_cuts() -> None:
    seen: list[int] = []

    def kernel(x: Tensor) -> Tensor:
        seen.append(len(x))
        return 2 * x

    x = torch.randn(3, 7, 5)
    assert torch.equal(Product(kernel, 4, 4, 8)(x), 2 * x)
    assert seen == [8, 8, 8]  # 21 rows: 8, 8, and 5 padded
