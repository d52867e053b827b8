"""Which packed layout is chosen: the fastest of those that compute right."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradellm_engine.layers.packing import Packing, best_packing, computes_right, fastest, packings

DTYPES = [torch.float32, torch.bfloat16]


def layout(library: str, product: Callable[[Tensor, Tensor], Tensor]) -> Packing:
    """A layout that is the weight itself."""
    return Packing(library, lambda weight: weight, lambda x, packed, weight, bias: product(x, packed))


def slower(x: Tensor, weight: Tensor) -> Tensor:
    time.sleep(0.01)
    return x @ weight.t()


def right_for_few_rows(x: Tensor, weight: Tensor) -> Tensor:
    right = x @ weight.t()
    return right if len(x) <= 64 else right.flip(0)


def unsupported(x: Tensor, weight: Tensor) -> Tensor:
    raise RuntimeError("needs the cpu support")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_best_layout_computes_right(dtype: torch.dtype) -> None:
    best = best_packing(dtype)
    assert best is None or (best in packings(dtype) and computes_right(best, dtype))


def test_other_dtypes_are_not_packed() -> None:
    assert best_packing(torch.float64) is None
    assert best_packing(torch.float16) is None


@pytest.mark.parametrize("product", [right_for_few_rows, unsupported])
def test_a_layout_that_is_wrong_or_unsupported_is_not_used(product: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert not computes_right(layout("other", product), torch.float32)


def test_the_fastest_layout_is_used_if_it_is_faster_than_none() -> None:
    zeros = torch.zeros(64, 1536)
    fast, slow = layout("fast", lambda x, weight: zeros[: len(x)]), layout("slow", slower)
    assert fastest([slow, fast], torch.float32) is fast
    assert fastest([slow], torch.float32) is None
    assert fastest([], torch.float32) is None
