"""Products with weights that never change, each by the kernel that reads them fastest.

A decode step multiplies one row a stream by every weight, so that its speed is that of reading them. The library behind
PyTorch's float32 products on x86 processors (MKL) reaches a third to half of that speed for few rows on some of them.

- Stretches. A batch of products, each with a stretch of the weight's rows, makes the same library share the work
  among threads by stretches, each of which reads its memory from end to end: for one or two rows that is twice as fast.
  A product with the stored matrix's rows is one of dot products, one with its columns a sum of scaled rows, which is
  slower where rows are short. So joined layers with many outputs store their weight by columns: the backward pass gains
  more by it than the forward pass loses.
- oneDNN, which PyTorch carries too and uses for other types, is faster for 3 to 64 rows. Below some hundred thousand
  weights its greater overhead a call weighs more. Where each of the stored matrix's rows is multiplied with each given
  row, and these are whole vectors in number, they are faster in each other's place: the given ones as the weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum, auto
from functools import partial

import torch
from torch import Tensor

from gradellm_engine.layers.invariant_gemm import Product, invariant_product

# Measured with `python -m gradellm_bench.linear`.
MAX_TILED_ROWS = 2  # at most; oneDNN is as fast or faster for more
MIN_TILED_WEIGHTS = 2**17  # smaller ones are faster as one product
MAX_ONEDNN_ROWS = 64  # at most; beyond it torch's default is as fast
MIN_ONEDNN_WEIGHTS = 2**19
TRANSPOSED_OPERANDS_MULTIPLE = 16  # of so many, and of multiples, the given rows stand in the weight's place
WIDE_OUTPUT_RATIO = 2  # outputs an input, from which on it pays to store a joined weight by columns


class Kernel(Enum):
    """What computes a product."""

    DEFAULT = auto()
    ROW_TILES = auto()
    ONEDNN = auto()
    INVARIANT = auto()  # whichever makes the same of a row beside any others


class GemmWeight:
    """A linear layer's numbers.

    Attributes:
        weight: [out, in], stored by rows or by columns.
        bias: [out]; None for none.
        num_row_tiles: in how many the stored rows are cut for a product with few rows; 1 for never.
        uses_onednn: whether oneDNN computes products with several rows.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self._transposed = self.weight.t()
        self._is_by_columns = self._transposed.is_contiguous() and not self.weight.is_contiguous()
        self._stored = self._transposed if self._is_by_columns else self.weight
        self.num_row_tiles = _num_row_tiles(self._stored)
        self.uses_onednn = _uses_onednn(self._stored)
        self._invariant: tuple[Product, Product] | None = None  # the layer, and by its input

    def enable_batch_invariance(self) -> None:
        """From now on, give every row the same product whatever rows are beside it."""
        self._invariant = (
            invariant_product(self.weight, self.bias, self._kernels(self.weight, self.bias)),
            invariant_product(self._transposed, None, self._kernels(self._transposed, None)),
        )

    def _kernels(self, weight: Tensor, bias: Tensor | None) -> list[Callable[[Tensor], Tensor]]:
        """What computes x W^T + b for any number of rows, the fastest first. [n, in] -> [n, out]"""
        default = partial(torch.nn.functional.linear, weight=weight, bias=bias)
        if self.uses_onednn:
            return [partial(_onednn, weight=weight, bias=bias), default]
        is_small = weight.numel() < MIN_TILED_WEIGHTS  # one row by itself takes half as long as four
        return [partial(_row_by_row, weight=weight, bias=bias), default] if is_small else [default]

    def kernel(self, x: Tensor) -> Kernel:
        """What multiplies these rows. [.., in] or [.., out]"""
        if self._invariant is not None:
            return Kernel.INVARIANT
        rows = _num_rows(x)
        if self.num_row_tiles > 1 and rows <= MAX_TILED_ROWS:
            return Kernel.ROW_TILES
        return Kernel.ONEDNN if self.uses_onednn and rows <= MAX_ONEDNN_ROWS else Kernel.DEFAULT

    def product(self, x: Tensor) -> Tensor:
        """The layer: x W^T + b. [.., in] -> [.., out]"""
        match self.kernel(x):
            case Kernel.ROW_TILES:
                by_rows = row_tiled_matmul_transposed if self._is_by_columns else row_tiled_matmul
                y = by_rows(x, self._stored, self.num_row_tiles)
                return y if self.bias is None else y + self.bias
            case Kernel.ONEDNN if _transposes_operands(x) and not self._is_by_columns:
                y = _onednn_transposed(x, self._stored)
                return y if self.bias is None else y + self.bias
            case Kernel.ONEDNN:
                return _onednn(x, self.weight, self.bias)
            case Kernel.INVARIANT if self._invariant is not None:
                return self._invariant[0](x)
            case _:
                return torch.nn.functional.linear(x, self.weight, self.bias)

    def gradient(self, g: Tensor) -> Tensor:
        """By its input: g W. [.., out] -> [.., in]"""
        is_batch = torch._C._functorch.is_batchedtensor(g)  # of torch.func.vmap, which the others know nothing of
        match Kernel.DEFAULT if is_batch else self.kernel(g):
            case Kernel.ROW_TILES:
                by_columns = row_tiled_matmul if self._is_by_columns else row_tiled_matmul_transposed
                return by_columns(g, self._stored, self.num_row_tiles)
            case Kernel.ONEDNN if _transposes_operands(g) and self._is_by_columns:
                return _onednn_transposed(g, self._stored)
            case Kernel.ONEDNN:
                return _onednn(g, self._transposed, None)
            case Kernel.INVARIANT if self._invariant is not None:
                return self._invariant[1](g)
            case _:
                return g @ self.weight


def row_tiled_matmul(x: Tensor, weight: Tensor, count: int) -> Tensor:
    """The product x W^T, each stretch of W's rows by itself: y_s = W_s x^T. [.., in], [out, in] -> [.., out]"""
    rows = x.reshape(-1, x.shape[-1])
    products = torch.bmm(weight.view(count, -1, weight.shape[1]), rows.t().expand(count, -1, -1))  # [count, ., rows]
    if len(rows) == 1:
        return products.view(*x.shape[:-1], -1)
    return products.view(-1, len(rows)).t().reshape(*x.shape[:-1], -1)


def row_tiled_matmul_transposed(g: Tensor, weight: Tensor, count: int) -> Tensor:
    """The product g W as the sum of its stretches': sum_s g_s W_s. [.., out], [out, in] -> [.., in]"""
    stretches = g.reshape(-1, count, g.shape[-1] // count).transpose(0, 1)  # [count, rows, .]
    return torch.bmm(stretches, weight.view(count, -1, weight.shape[1])).sum(0).view(*g.shape[:-1], -1)


def layout_for_backward(weight: Tensor) -> Tensor:
    """The same weight, stored by columns where its outputs are so many that the backward pass gains. [out, in]"""
    num_outputs, num_inputs = weight.shape
    is_wide = num_outputs >= WIDE_OUTPUT_RATIO * num_inputs
    return weight.t().contiguous().t() if is_wide and _num_row_tiles(weight) > 1 else weight


def has_onednn() -> bool:
    """Whether PyTorch was built with it, and still calls its product what we call it."""
    is_built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return is_built and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _is_float_on_cpu(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous()


def _num_row_tiles(weight: Tensor) -> int:
    """As many as share them among all threads."""
    has_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    if not has_mkl or not _is_float_on_cpu(weight) or weight.numel() < MIN_TILED_WEIGHTS:
        return 1
    wanted = 2
    while wanted < torch.get_num_threads():
        wanted *= 2
    return math.gcd(wanted, weight.shape[0])


def _uses_onednn(weight: Tensor) -> bool:
    has_it = has_onednn() and bool(torch.backends.mkldnn.enabled)
    return has_it and _is_float_on_cpu(weight) and weight.numel() >= MIN_ONEDNN_WEIGHTS


def _row_by_row(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product x W^T + b as one of each row. [n, in], [out, in], [out] -> [n, out]"""
    y = torch.bmm(x[:, None], weight.t().expand(len(x), -1, -1))[:, 0]
    return y if bias is None else y + bias


def _num_rows(x: Tensor) -> int:
    """[.., width]"""
    return x.numel() // x.shape[-1]


def _transposes_operands(x: Tensor) -> bool:
    return _num_rows(x) % TRANSPOSED_OPERANDS_MULTIPLE == 0


def _onednn_transposed(x: Tensor, stored: Tensor) -> Tensor:
    """The product x W^T as (W x^T)^T. [.., in], [out, in] -> [.., out]"""
    rows = x.reshape(-1, x.shape[-1])
    return _onednn(stored, rows, None).t().reshape(*x.shape[:-1], -1)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product x W^T + b. [.., in], [out, in], [out] -> [.., out]"""
    result: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return result
