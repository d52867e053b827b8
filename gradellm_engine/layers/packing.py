"""Packed weights: copies in the layout that a kernel reads, made once instead of in every call.

MKL and oneDNN, both part of torch, have a layout of their own, oneDNN for bfloat16 too, and so has the engine's own
kernel (`gradellm_engine.cpu_kernels.gemm`). Which is fastest depends on the processor: `best_packing` tries them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from gradellm_engine.cpu_kernels.team import has_kernels
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
TRIAL_ROUNDS = 20
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


@cache
def own_packing() -> Packing:
    """The engine's own layout; compiles its kernel."""
    from gradellm_engine.cpu_kernels import gemm  # needs Numba, and takes seconds

    return Packing(
        "gradellm", gemm.pack, lambda x, packed, weight, bias: gemm.packed_linear(x, packed, len(weight), bias)
    )


def packings(dtype: torch.dtype) -> list[Packing]:
    """The layouts that there are for a dtype, here and in this build of torch."""
    found = [MKL] if has_mkl_linear() and dtype == torch.float32 else []
    found += [own_packing()] if has_kernels() and dtype == torch.float32 else []
    return found + ([ONEDNN] if has_onednn_linear() and dtype in MAX_ERRORS else [])


@cache
def best_packing(dtype: torch.dtype) -> Packing | None:
    """The fastest layout on this processor that computes right; None where none is faster than torch's own product.

    Tried once a process, in about a tenth of a second.
    """
    return fastest([packing for packing in packings(dtype) if computes_right(packing, dtype)], dtype)


def fastest(candidates: Sequence[Packing], dtype: torch.dtype) -> Packing | None:
    """The layout with the smallest sum of durations, each relative to torch's own product; None where that wins.

    Rounds alternate between all of them, and the shortest duration of each counts, so that other load matters little.
    """
    if not candidates:
        return None
    weight = _random(TRIAL_SHAPE, dtype)
    products: list[Callable[[Tensor], Tensor]] = [partial(torch.nn.functional.linear, weight=weight)]
    products += [_bound(candidate, weight) for candidate in candidates]
    ratios = [0.0] * len(products)
    for rows in TRIAL_ROWS:
        x = _random((rows, TRIAL_SHAPE[1]), dtype)
        rounds = [[_seconds(product, x) for product in products] for _ in range(TRIAL_ROUNDS)]
        shortest = [min(seconds) for seconds in zip(*rounds, strict=True)]
        ratios = [ratio + seconds / shortest[0] for ratio, seconds in zip(ratios, shortest, strict=True)]
    best = min(range(len(products)), key=ratios.__getitem__)
    return None if best == 0 else candidates[best - 1]


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


def _bound(packing: Packing, weight: Tensor) -> Callable[[Tensor], Tensor]:
    """The product with a packed copy of a weight, as a function of the input rows."""
    packed = packing.pack(weight)
    return lambda x: packing.product(x, packed, weight, None)


def _seconds(product: Callable[[Tensor], Tensor], x: Tensor) -> float:
    began = time.perf_counter()
    product(x)
    return time.perf_counter() - began


def _random(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0])).to(dtype)
