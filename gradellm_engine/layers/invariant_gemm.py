"""Batch-invariant GEMMs: a row's result does not depend on the number of rows or on the other rows.

See `gradellm_engine.layers.batch_invariant`. Row counts are padded, and blocks limited, so that the library always sums
in the same order; the smallest padding that works is found by trial.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Numbers of rows that are tried, in order: at least, a multiple of, and at most in one block.
_MAX_ROWS = 64
_SIZES = ((1, 1, _MAX_ROWS), (2, 1, _MAX_ROWS), (4, 4, _MAX_ROWS), (16, 16, 16), (1, 1, 1))

Kernel = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Product:
    """A product of rows with a weight, computed in blocks of padded row counts.

    Attributes:
        kernel: computes a block. [n, in] -> [n, out]
        min_rows: rows of a block at least.
        multiple: the row count is a multiple of this.
        max_rows: rows of a block at most.
    """

    kernel: Kernel
    min_rows: int
    multiple: int
    max_rows: int

    def __call__(self, x: Tensor) -> Tensor:
        """[.., in] -> [.., out]"""
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) <= self.max_rows:
            y = self._block(rows)
        else:
            y = torch.cat([self._block(block) for block in torch.split(rows, self.max_rows)])
        return y.view(*x.shape[:-1], -1)

    def _block(self, rows: Tensor) -> Tensor:
        count = len(rows)
        padded = max(self.min_rows, -(-count // self.multiple) * self.multiple)
        if padded != count:
            return self.kernel(F.pad(rows, (0, 0, 0, padded - count)))[:count]
        # A copy is aligned, and the kernel may depend on alignment.
        return self.kernel(rows if rows.data_ptr() % 64 == 0 and rows.is_contiguous() else rows.clone())


@dataclass(frozen=True)
class GemmSpec:
    """What determines in which order a library sums.

    Attributes:
        shape: of the weight. [out, in]
        stride: of the weight.
        dtype: of the weight.
        has_bias: whether a bias is added.
        num_threads: threads that share the work.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    has_bias: bool
    num_threads: int


_chosen: dict[GemmSpec, tuple[int, int, int, int]] = {}  # index of the kernel, min_rows, multiple, max_rows


def invariant_product(weight: Tensor, bias: Tensor | None, kernels: Sequence[Kernel]) -> Product:
    """The product x W^T + b by the first kernel and block size with which a row's result is always the same.

    Args:
        weight: [out, in], stored by rows or by columns.
        bias: [out]; None for none.
        kernels: of this product, the fastest first.
    """
    key = GemmSpec(tuple(weight.shape), weight.stride(), weight.dtype, bias is not None, torch.get_num_threads())
    if key not in _chosen:
        # In the weight's dtype: with fewer bits, products could be exact, and sums the same in any order.
        generator = torch.Generator().manual_seed(0)
        x = torch.randn((_MAX_ROWS, weight.shape[1]), dtype=weight.dtype, generator=generator)
        _chosen[key] = next(
            (index, min_rows, multiple, max_rows)
            for min_rows, multiple, max_rows in _SIZES
            for index, kernel in enumerate(kernels)
            if _is_invariant(Product(kernel, min_rows, multiple, max_rows), x)
        )
    index, min_rows, multiple, max_rows = _chosen[key]
    return Product(kernels[index], min_rows, multiple, max_rows)


@torch.no_grad()
def _is_invariant(product: Product, x: Tensor) -> bool:
    """Whether rows [n, in] have the same products for any number of rows and any order."""
    expected = product(x)
    moved = torch.arange(len(x)).roll(5)
    return torch.equal(product(x[moved]), expected[moved]) and all(
        torch.equal(product(x[-count:]), expected[-count:]) for count in range(1, len(x))
    )
