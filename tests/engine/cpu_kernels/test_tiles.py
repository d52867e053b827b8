"""Loops in LLVM's representation: their constants, and rounding. Products are tested with the kernels that are built of
them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("numba")
from gradellm_engine.cpu_kernels.gemm import NUMBERS_PER_TASK, rounded
from gradellm_engine.cpu_kernels.tiles import HAS_AVX512, HAS_BFLOAT16, LANES, LINE, MAX_ROWS, PANEL

REGISTERS = 32 if HAS_AVX512 else 16


def test_a_tile_fits_the_registers() -> None:
    assert PANEL == 2 * LANES
    assert LINE == 4 * PANEL
    assert 2 * MAX_ROWS + 3 <= REGISTERS  # the sums, a line of weights, a number of x


@pytest.mark.skipif(not HAS_BFLOAT16, reason="the processor does not multiply bfloat16 numbers")
@given(st.integers(1, 3 * PANEL), st.integers(0, 2**32 - 1))
def test_rounding_is_torchs(count: int, seed: int) -> None:
    x = torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (seed % 60 - 30)
    assert torch.equal(rounded(x), x.bfloat16())


@pytest.mark.skipif(not HAS_BFLOAT16, reason="the processor does not multiply bfloat16 numbers")
def test_rounding_by_several_tasks_and_of_numbers_that_are_not_finite() -> None:
    x = torch.randn(2 * NUMBERS_PER_TASK + 5)
    x[3], x[NUMBERS_PER_TASK], x[-1] = torch.inf, -torch.inf, torch.nan
    actual = rounded(x)
    torch.testing.assert_close(actual, x.bfloat16(), rtol=0, atol=0, equal_nan=True)
