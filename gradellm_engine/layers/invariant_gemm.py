"""Matrix products that sum in one order whatever the number of rows; see `gradellm_engine.layers.batch_invariant`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows are padded with zeros to these: at least, a multiple of, and at most so many at a time.
_MOST_ROWS = 64
_SIZES = ((1, 1, _MOST_ROWS), (2, 1, _MOST_ROWS), (4, 4, _MOST_ROWS), (16, 16, 16), (1, 1, 1))

Kernel = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Product:
    """Rows times a weight, in one order of summing whatever the number of rows.

    Attributes:
        kernel: computes it. [n, in] -> [n, out]
        least: rows that it is given at least.
        multiple: of which their number is one.
        most: rows that it is given at most.
    """

    kernel: Kernel
    least: int
    multiple: int
    most: int

    def __call__(self, x: Tensor) -> Tensor:
        """[.., in] -> [.., out]"""
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) <= self.most:
            y = self._block(rows)
        else:
            y = torch.cat([self._block(block) for block in torch.split(rows, self.most)])
        return y.view(*x.shape[:-1], -1)

    def _block(self, rows: Tensor) -> Tensor:
        count = len(rows)
        padded = max(self.least, -(-count // self.multiple) * self.multiple)
        if padded != count:
            return self.kernel(F.pad(rows, (0, 0, 0, padded - count)))[:count]
        # Memory of its own begins where addresses are aligned.
        return self.kernel(rows if rows.data_ptr() % 64 == 0 and rows.is_contiguous() else rows.clone())


@dataclass(frozen=True)
class Weight:
    """What decides in which order a library sums.

    Attributes:
        shape: [out, in]
        stride: how it is stored.
        dtype: of its numbers.
        has_bias: whether something is added.
        num_threads: that share the work.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    has_bias: bool
    num_threads: int


_found: dict[Weight, tuple[int, int, int, int]] = {}  # kernel, least, multiple, most


def invariant_product(weight: Tensor, bias: Tensor | None, kernels: Sequence[Kernel]) -> Product:
    """The product x W^T + b by the first of `kernels`, and in blocks of such sizes, that a row's result is always one.

    Args:
        weight: [out, in], stored by rows or by columns.
        bias: [out]; None for none.
        kernels: of this product, the fastest first.
    """
    key = Weight(tuple(weight.shape), weight.stride(), weight.dtype, bias is not None, torch.get_num_threads())
    if key not in _found:
        # In the weight's own type: of shorter numbers the products might be exact, and sums the same in any order.
        generator = torch.Generator().manual_seed(0)
        x = torch.randn((_MOST_ROWS, weight.shape[1]), dtype=weight.dtype, generator=generator)
        _found[key] = next(
            (place, least, multiple, most)
            for least, multiple, most in _SIZES
            for place, kernel in enumerate(kernels)
            if _is_invariant(Product(kernel, least, multiple, most), x)
        )
    place, least, multiple, most = _found[key]
    return Product(kernels[place], least, multiple, most)


@torch.no_grad()
def _is_invariant(product: Product, x: Tensor) -> bool:
    """Whether rows [n, in] have the same products whatever their number and their places."""
    expected = product(x)
    moved = torch.arange(len(x)).roll(5)
    return torch.equal(product(x[moved]), expected[moved]) and all(
        torch.equal(product(x[-count:]), expected[-count:]) for count in range(1, len(x))
    )
