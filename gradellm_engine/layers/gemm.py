"""GEMM kernel selection for linear layers with frozen weights on a CPU.

A decode step multiplies one row a sequence by every weight, so its speed is the memory bandwidth that the kernel
reaches; a prefill multiplies hundreds, so its speed is the processor's arithmetic.

Packed weights are fastest for both (`gradellm_engine.layers.packing`): a copy of the weight in the layout that MKL's or
oneDNN's kernels read, made once at load instead of in every call. The gradient has a packed copy of the transposed
weight. `pack_weights` makes these copies where there is memory for them.

Without them, MKL reaches a third to half of the bandwidth for few rows on some CPUs. Two other kernels are faster
there:

- Row tiles, for one or two rows. The weight is cut into tiles of rows and multiplied as a batch (`torch.bmm`), so that
  MKL shares the work among threads by tiles, each of which is read sequentially: twice as fast. Multiplying with the
  stored matrix's rows is a set of dot products; with its columns it is a sum of scaled rows, which is slower where rows
  are short. Fused layers with many outputs are therefore stored column-major: the backward pass gains more than the
  forward pass loses.
- oneDNN, for 3 to 64 rows; PyTorch ships it for other dtypes. Below some hundred thousand weights its overhead per call
  outweighs the gain. With a number of input rows that fills whole vectors it is faster still with transposed operands:
  swapped operands: the input rows as the weight, multiplied with each stored row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum, auto
from functools import partial

import torch
from torch import Tensor

from gradellm_engine.layers.invariant_gemm import Product, invariant_product
from gradellm_engine.layers.packing import Packing, best_packing, own_packing
from gradellm_engine.utils.torch_compat import (
    has_onednn_linear,
    is_batched_tensor,
    onednn_linear,
)

# Thresholds measured with `python -m gradellm_bench.linear`.
MIN_PACKED_WEIGHTS = 2**17  # smaller layers gain nothing
MAX_TILED_ROWS = 2  # oneDNN is as fast or faster for more input rows
MIN_TILED_WEIGHTS = 2**17  # smaller layers are faster as one product
MAX_ONEDNN_ROWS = 64  # PyTorch's default kernel is as fast for more input rows
MIN_ONEDNN_WEIGHTS = 2**19
TRANSPOSED_OPERANDS_MULTIPLE = 16  # oneDNN takes transposed operands where input rows are a multiple of this
WIDE_OUTPUT_RATIO = 2  # outputs per input from which a fused weight is stored column-major


class Kernel(Enum):
    """What computes a product."""

    DEFAULT = auto()  # torch.nn.functional.linear
    PACKED = auto()
    ROW_TILES = auto()
    ONEDNN = auto()
    INVARIANT = auto()  # a row's result does not depend on the other rows


class GemmWeight:
    """A frozen linear layer's weight and bias, with the kernels that multiply it.

    Attributes:
        weight: [out, in], stored row-major or column-major.
        bias: [out]; None for none.
        is_widened: whether inputs and outputs are in float32, and the weight in bfloat16.
        is_exact: whether such a product, where the weight is not packed, takes a float32 copy of the weight made in the
            call, rather than inputs rounded to bfloat16.
        num_row_tiles: tiles into which the stored rows are cut for a product with few input rows; 1 for no tiling.
        uses_onednn: whether oneDNN computes products with several input rows.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, is_widened: bool = False) -> None:
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self.is_widened, self.is_exact = is_widened, False
        self._transposed = self.weight.t()
        self._is_column_major = self._transposed.is_contiguous() and not self.weight.is_contiguous()
        self._stored = self._transposed if self._is_column_major else self.weight
        self.num_row_tiles = _num_row_tiles(self._stored)
        self.uses_onednn = _uses_onednn(self._stored)
        self._invariant: tuple[Product, Product] | None = None  # x W^T + b, and g W
        self._packing: Packing | None = None
        self._packed: Tensor | None = None
        self._packed_transposed: Tensor | None = None

    @property
    def can_be_packed(self) -> bool:
        """Whether a packed copy is faster."""
        weight = self.weight
        is_large = weight.device.type == "cpu" and weight.numel() >= MIN_PACKED_WEIGHTS
        return self.is_widened or (is_large and self._best_packing() is not None)

    def _best_packing(self) -> Packing | None:
        return own_packing() if self.is_widened else best_packing(self.weight.dtype)

    def pack(self, packing: Packing | None = None) -> None:
        """Compute products with a packed copy of the weight from now on, in the best layout or in a given one."""
        self._packing = packing or self._best_packing()
        self._packed = None if self._packing is None else self._packing.pack(self.weight.contiguous())

    def pack_transposed(self) -> None:
        """Once packed, compute gradients with a packed copy of the transposed weight from now on."""
        if self._packing is not None:
            self._packed_transposed = self._packing.pack(self._transposed.contiguous())

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed copies, as far as torch knows their size."""
        return sum(
            copy.nbytes if copy.layout is torch.strided else self.weight.nbytes
            for copy in (self._packed, self._packed_transposed)
            if copy is not None
        )

    def unpack(self) -> None:
        """Drop the packed copies."""
        self._packing = self._packed = self._packed_transposed = None

    def enable_batch_invariance(self) -> None:
        """From now on, a row's result does not depend on the other rows."""
        self._invariant = (
            invariant_product(self.weight, self.bias, self._kernels(self.weight, self.bias)),
            invariant_product(self._transposed, None, self._kernels(self._transposed, None)),
        )

    def disable_batch_invariance(self) -> None:
        """Use the fastest kernels again."""
        self._invariant = None

    def _kernels(self, weight: Tensor, bias: Tensor | None) -> list[Callable[[Tensor], Tensor]]:
        """Functions that compute x W^T + b for any number of rows, the fastest first. [n, in] -> [n, out]"""
        default = partial(torch.nn.functional.linear, weight=weight, bias=bias)
        if self.uses_onednn:
            return [partial(onednn_linear, weight=weight, bias=bias), default]
        is_small = weight.numel() < MIN_TILED_WEIGHTS  # one row by itself takes half as long as four
        return [partial(_row_by_row, weight=weight, bias=bias), default] if is_small else [default]

    def kernel(self, x: Tensor) -> Kernel:
        """The kernel for these input rows. [.., in] or [.., out]"""
        if self._invariant is not None:
            return Kernel.INVARIANT
        return Kernel.PACKED if self._packed is not None else self._unpacked_kernel(x)

    def _unpacked_kernel(self, x: Tensor) -> Kernel:
        rows = _num_rows(x)
        if self.num_row_tiles > 1 and rows <= MAX_TILED_ROWS:
            return Kernel.ROW_TILES
        return Kernel.ONEDNN if self.uses_onednn and rows <= MAX_ONEDNN_ROWS else Kernel.DEFAULT

    def product(self, x: Tensor) -> Tensor:
        """The layer's output, x W^T + b. [.., in] -> [.., out]"""
        match self.kernel(x):
            case Kernel.PACKED if self._packing is not None and self._packed is not None:
                return self._packing.product(x, self._packed, self.weight, self.bias)
            case Kernel.ROW_TILES:
                matmul = row_tiled_matmul_transposed if self._is_column_major else row_tiled_matmul
                y = matmul(x, self._stored, self.num_row_tiles)
                return y if self.bias is None else y + self.bias
            case Kernel.ONEDNN if _transposes_operands(x) and not self._is_column_major:
                y = _onednn_transposed(x, self._stored)
                return y if self.bias is None else y + self.bias
            case Kernel.ONEDNN:
                return onednn_linear(x, self.weight, self.bias)
            case Kernel.INVARIANT if self._invariant is not None:
                return self._invariant[0](x)
            case _ if self.is_widened and not self.is_exact:
                y = torch.nn.functional.linear(x.to(self.weight.dtype), self.weight).to(x.dtype)
                return y if self.bias is None else y + self.bias
            case _:
                return torch.nn.functional.linear(x, self._in_dtype_of(x), self.bias)

    def gradient(self, g: Tensor) -> Tensor:
        """The gradient by the layer's input, g W. [.., out] -> [.., in]"""
        # Of the kernels, only the default one has a batching rule for torch.func.vmap.
        kernel = Kernel.DEFAULT if is_batched_tensor(g) else self.kernel(g)
        if kernel is Kernel.PACKED and self._packed_transposed is None:
            kernel = self._unpacked_kernel(g)
        match kernel:
            case Kernel.PACKED if self._packing is not None and self._packed_transposed is not None:
                return self._packing.product(g, self._packed_transposed, self._transposed, None)
            case Kernel.ROW_TILES:
                matmul = row_tiled_matmul if self._is_column_major else row_tiled_matmul_transposed
                return matmul(g, self._stored, self.num_row_tiles)
            case Kernel.ONEDNN if _transposes_operands(g) and self._is_column_major:
                return _onednn_transposed(g, self._stored)
            case Kernel.ONEDNN:
                return onednn_linear(g, self._transposed, None)
            case Kernel.INVARIANT if self._invariant is not None:
                return self._invariant[1](g)
            case _ if self.is_widened and not self.is_exact:
                return (g.to(self.weight.dtype) @ self.weight).to(g.dtype)
            case _:
                return g @ self._in_dtype_of(g)

    def _in_dtype_of(self, x: Tensor) -> Tensor:
        """The weight as torch multiplies it with x. [out, in]"""
        return self.weight.to(x.dtype) if self.is_widened else self.weight


def row_tiled_matmul(x: Tensor, weight: Tensor, count: int) -> Tensor:
    """The product x W^T, one tile s of W's rows at a time: y_s = W_s x^T. [.., in], [out, in] -> [.., out]"""
    rows = x.reshape(-1, x.shape[-1])
    products = torch.bmm(weight.view(count, -1, weight.shape[1]), rows.t().expand(count, -1, -1))  # [count, ., rows]
    if len(rows) == 1:
        return products.view(*x.shape[:-1], -1)
    return products.view(-1, len(rows)).t().reshape(*x.shape[:-1], -1)


def row_tiled_matmul_transposed(g: Tensor, weight: Tensor, count: int) -> Tensor:
    """The product g W as a sum over tiles of W's rows: sum_s g_s W_s. [.., out], [out, in] -> [.., in]"""
    tiles = g.reshape(-1, count, g.shape[-1] // count).transpose(0, 1)  # [count, rows, .]
    return torch.bmm(tiles, weight.view(count, -1, weight.shape[1])).sum(0).view(*g.shape[:-1], -1)


def layout_for_backward(weight: Tensor) -> Tensor:
    """The same weight, column-major where it has so many outputs that the backward pass gains by it. [out, in]"""
    num_outputs, num_inputs = weight.shape
    is_wide = num_outputs >= WIDE_OUTPUT_RATIO * num_inputs
    return weight.t().contiguous().t() if is_wide and _num_row_tiles(weight) > 1 else weight


def _is_float_on_cpu(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous()


def _num_row_tiles(weight: Tensor) -> int:
    """Enough tiles for all threads, as far as they divide the number of rows."""
    has_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    if not has_mkl or not _is_float_on_cpu(weight) or weight.numel() < MIN_TILED_WEIGHTS:
        return 1
    wanted = 2
    while wanted < torch.get_num_threads():
        wanted *= 2
    return math.gcd(wanted, weight.shape[0])


def _uses_onednn(weight: Tensor) -> bool:
    is_enabled = has_onednn_linear() and bool(torch.backends.mkldnn.enabled)
    return is_enabled and _is_float_on_cpu(weight) and weight.numel() >= MIN_ONEDNN_WEIGHTS


def _row_by_row(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product x W^T + b, one product per row. [n, in], [out, in], [out] -> [n, out]"""
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
    return onednn_linear(stored, rows, None).t().reshape(*x.shape[:-1], -1)
