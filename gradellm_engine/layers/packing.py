"""Packed weights: copies in the layout that a library's kernels read, made once instead of in every call.

MKL and oneDNN, both part of torch, have a layout of their own, oneDNN for bfloat16 too. Which is faster depends on the
processor: `best_packing` tries them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from gradellm_engine.utils.torch_compat import (
    has_mkl_linear,
    has_onednn_linear,
    mkl_linear,
    onednn_linear,
    pack_for_mkl,
    pack_for_onednn,
)

TRIAL_SHAPE = (1536, 576)
TRIAL_ROWS = (1, 4, 16, 64)  # decode steps of some streams, and short prompts
TRIAL_ROUNDS = 7
CHECKED_ROWS = (1, 2, 3, 5, 16, 17, 63, 64, 65, 130, 257)
MAX_ERRORS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # relative to the largest output


@dataclass(frozen=True)
class Packing:
    """A library's packed layout.

    Attributes:
        library: whose it is.
        pack: makes a packed copy of a weight. [out, in] -> opaque
        product: x W^T + b of input rows, packed copy, weight and bias. [.., in], opaque, [out, in], [out] -> [.., out]
    """

    library: str
    pack: Callable[[Tensor], Tensor]
    product: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


MKL = Packing("MKL", pack_for_mkl, mkl_linear)
ONEDNN = Packing("oneDNN", pack_for_onednn, lambda x, packed, weight, bias: onednn_linear(x, packed, bias))


def packings(dtype: torch.dtype) -> list[Packing]:
    """The layouts that this build of torch has for a dtype."""
    found = [MKL] if has_mkl_linear() and dtype == torch.float32 else []
    return found + ([ONEDNN] if has_onednn_linear() and dtype in MAX_ERRORS else [])


@cache
def best_packing(dtype: torch.dtype) -> Packing | None:
    """The fastest layout on this processor that computes right; None where none is faster than torch's own product.

    Tried once a process, in about a tenth of a second.
    """
    return fastest([packing for packing in packings(dtype) if computes_right(packing, dtype)], dtype)


def fastest(candidates: Sequence[Packing], dtype: torch.dtype) -> Packing | None:
    """The layout with the smallest sum of durations, each relative to torch's own product; None where that wins."""
    weight = _random(TRIAL_SHAPE, dtype)
    own: Callable[[Tensor], Tensor] = lambda x: torch.nn.functional.linear(x, weight)  # noqa: E731
    packed = [(candidate, candidate.pack(weight)) for candidate in candidates]
    ratios = dict.fromkeys(range(len(packed)), 0.0)
    for rows in TRIAL_ROWS:
        x = _random((rows, TRIAL_SHAPE[1]), dtype)
        seconds = _seconds(own, x)
        for index, (candidate, copy) in enumerate(packed):
            product = candidate.product
            ratios[index] += _seconds(lambda x, product=product, copy=copy: product(x, copy, weight, None), x) / seconds
    best = min(ratios, key=lambda index: ratios[index], default=None)
    return None if best is None or ratios[best] >= len(TRIAL_ROWS) else candidates[best]


def computes_right(packing: Packing, dtype: torch.dtype) -> bool:
    """Whether products are right for any number of rows.

    MKL's documentation ties a packed matrix to a number of input rows; in fact its layout is the same for any.
    """
    weight = _random((192, 160), dtype)
    try:
        packed = packing.pack(weight)
        for rows in CHECKED_ROWS:
            x = _random((rows, 160), dtype)
            exact = x.double() @ weight.double().t()
            error = (packing.product(x, packed, weight, None).double() - exact).abs().max()
            if not error <= MAX_ERRORS[dtype] * exact.abs().max():
                return False
    except RuntimeError:  # the processor lacks instructions that the library needs
        return False
    return True


def _seconds(product: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """The shortest duration of some rounds."""
    found = []
    for _ in range(TRIAL_ROUNDS):
        began = time.perf_counter()
        product(x)
        found.append(time.perf_counter() - began)
    return min(found)


def _random(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0])).to(dtype)
