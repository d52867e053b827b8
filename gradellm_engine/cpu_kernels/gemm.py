"""Products of few or many rows with a packed weight: y = x W^T + b in float32.

A decode step's time is that of reading weights, once each, as fast as memory delivers them; libraries are made for
square products, and reach half of it. Here the weight is packed in panels of PANEL outputs, [out / PANEL, in, PANEL].
A thread takes a panel, and of it BLOCK inputs at a time, which fit the first-level cache; for every MAX_ROWS rows of x
it keeps a tile of y in registers, loads a vector of the panel for each input, and adds to each row. Meanwhile the next
block is fetched, in equal parts by each tile, so that memory is never idle.

A row's sum always runs over the inputs in ascending order, so a row's result does not depend on the other rows.
"""

from __future__ import annotations

import torch
from llvmlite import binding, ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from gradellm_engine.cpu_kernels.jit import FLOAT, INT32, INT64, compiled, kernel, next_task, vector_function
from gradellm_engine.cpu_kernels.operators import operator
from gradellm_engine.cpu_kernels.team import FIRST_ARGUMENT, NUM_TASKS, launch

# Registers bound the tile: 16 of 8 numbers (AVX2), 32 of 16 (AVX-512), 32 of 4 (Neon).
_HAS_AVX512 = bool(binding.get_host_cpu_features().get("avx512f"))
PANEL = 32 if _HAS_AVX512 else 16  # outputs
MAX_ROWS = 12 if _HAS_AVX512 else 6
BLOCK = 128  # inputs
MAX_TILED_ROWS = 192  # rows of x for which a panel is read once
TASKS_PER_THREAD = 4

_BYTES = 4  # of a number
_LINE = PANEL * _BYTES  # of a panel: its weights of one input
_PREFETCH_DISTANCE = 128  # lines, where a block is read once
_VECTOR = ir.VectorType(FLOAT, PANEL)
_ZEROS = torch.zeros(PANEL)


def pack(weight: Tensor) -> Tensor:
    """The panels of a weight; missing outputs of the last are zeros. [out, in] -> [panels, in, PANEL]"""
    num_outputs, num_inputs = weight.shape
    padded = torch.nn.functional.pad(weight, (0, 0, 0, -num_outputs % PANEL))
    return padded.view(-1, PANEL, num_inputs).transpose(1, 2).contiguous()


def product(x: Tensor, packed: Tensor, num_outputs: int, bias: Tensor | None) -> Tensor:
    """The product x W^T + b. [.., in], the panels of W, out, [out] -> [.., out]"""
    x = x.contiguous()
    num_panels, num_inputs, _ = packed.shape
    rows = x.numel() // num_inputs
    width = num_panels * PANEL
    y = x.new_empty((*x.shape[:-1], width))
    if bias is not None and num_outputs != width:
        bias = torch.nn.functional.pad(bias, (0, width - num_outputs))
    start = _ZEROS if bias is None else bias
    per_task = max(1, num_panels // (TASKS_PER_THREAD * torch.get_num_threads()))
    launch(
        PRODUCT, -(-num_panels // per_task), packed.data_ptr(), x.data_ptr(), start.data_ptr(), y.data_ptr(),
        bias is not None, rows, num_panels, num_inputs, per_task,
    )  # fmt: skip
    return y if num_outputs == width else y[..., :num_outputs]


@intrinsic
def _add_tile(typing_context, rows, w, x, start, y, depth, x_stride, start_stride, y_stride, fetched, fetch_step):
    """y[m] = start[m] + sum_k x[m, k] w[k] of 1 to MAX_ROWS rows m and PANEL outputs, over `depth` inputs k.

    w, x, start and y are addresses, strides those of rows in bytes. From `fetched` on, memory is fetched into the
    cache, `fetch_step` bytes for each input.
    """

    def generate(context, builder, signature, arguments):
        num_rows, *rest = arguments
        end = builder.append_basic_block("end")
        switch = builder.switch(num_rows, end)
        for count in range(1, MAX_ROWS + 1):
            block = builder.append_basic_block(f"tile_{count}")
            switch.add_case(ir.Constant(INT64, count), block)
            builder.position_at_end(block)
            _generate_tile(builder, count, *rest)
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 11), generate


def _generate_tile(builder, rows, w, x, start, y, depth, x_stride, start_stride, y_stride, fetched, fetch_step) -> None:
    vectors, numbers, byte = _VECTOR.as_pointer(), FLOAT.as_pointer(), ir.IntType(8).as_pointer()
    fma = vector_function(builder, "llvm.fma", PANEL, 3)
    prefetch_type = ir.FunctionType(ir.VoidType(), [byte, INT32, INT32, INT32])
    prefetch = cgutils.get_or_insert_function(builder.module, prefetch_type, "llvm.prefetch.p0")
    undefined, everywhere = ir.Constant(_VECTOR, ir.Undefined), ir.Constant(ir.VectorType(INT32, PANEL), [0] * PANEL)

    def rows_of(address, stride):
        return [builder.add(address, builder.mul(stride, ir.Constant(INT64, m))) for m in range(rows)]

    def load(address, kind):
        return builder.load(builder.inttoptr(address, kind), align=_BYTES)

    x_rows, before = rows_of(x, x_stride), builder.block
    head, body, end = (builder.append_basic_block(f"{name}_{rows}") for name in ("head", "body", "end"))
    builder.branch(head)
    builder.position_at_end(head)
    k, sums = builder.phi(INT64), [builder.phi(_VECTOR) for _ in range(rows)]
    builder.cbranch(builder.icmp_signed("<", k, depth), body, end)
    builder.position_at_end(body)
    line = builder.add(fetched, builder.mul(k, fetch_step))
    locality = [ir.Constant(INT32, 0), ir.Constant(INT32, 3), ir.Constant(INT32, 1)]  # to be read, kept in all levels
    builder.call(prefetch, [builder.inttoptr(line, byte), *locality])
    weights = load(builder.add(w, builder.mul(k, ir.Constant(INT64, _LINE))), vectors)
    added = []
    for sum_, row in zip(sums, x_rows, strict=True):
        number = load(builder.add(row, builder.mul(k, ir.Constant(INT64, _BYTES))), numbers)
        number = builder.insert_element(undefined, number, ir.Constant(INT32, 0))
        added.append(builder.call(fma, [builder.shuffle_vector(number, undefined, everywhere), weights, sum_]))
    following = [builder.add(k, ir.Constant(INT64, 1)), *added]
    for phi, value in zip([k, *sums], following, strict=True):
        phi.add_incoming(ir.Constant(phi.type, None), before)
        phi.add_incoming(value, body)
    builder.branch(head)
    builder.position_at_end(end)
    for sum_, from_row, to_row in zip(sums, rows_of(start, start_stride), rows_of(y, y_stride), strict=True):
        # A block's sum starts at zero, so that rounding errors grow with the block and not with all inputs.
        total = builder.fadd(load(from_row, vectors), sum_)
        builder.store(total, builder.inttoptr(to_row, vectors), align=_BYTES)


@compiled()
def _multiply_panel(panel, x, start, y, rows, width, num_inputs):
    """One panel's outputs of some rows of x; `start` and `y` are the addresses of the panel's first output."""
    tiles = (rows + MAX_ROWS - 1) // MAX_ROWS
    blocks = (num_inputs + BLOCK - 1) // BLOCK
    for i in range(blocks):
        first, end = num_inputs * i // blocks, num_inputs * (i + 1) // blocks
        block, depth = panel + first * _LINE, end - first
        for j in range(tiles):
            row, next_row = rows * j // tiles, rows * (j + 1) // tiles
            fetched, step = block + _PREFETCH_DISTANCE * _LINE, _LINE
            if tiles > 1:  # the next block, a part of it by each tile
                fetched, step = block + depth * _LINE + depth * _LINE * j // tiles, _LINE // tiles
            outputs = y + row * width * _BYTES
            _add_tile(
                next_row - row, block, x + (row * num_inputs + first) * _BYTES,
                outputs if i else start, outputs, depth,
                num_inputs * _BYTES, width * _BYTES if i else 0, width * _BYTES, fetched, step,
            )  # fmt: skip


def _product(arguments):
    """The kernel of `product`; a task is some panels."""
    values = carray(arguments, FIRST_ARGUMENT + 9)
    packed, x, start, y, has_bias, rows, num_panels, num_inputs, per_task = values[FIRST_ARGUMENT:]
    width = num_panels * PANEL
    parts = (rows + MAX_TILED_ROWS - 1) // MAX_TILED_ROWS
    while True:
        task = next_task(arguments)
        if task >= values[NUM_TASKS]:
            break
        for panel in range(task * per_task, min(num_panels, (task + 1) * per_task)):
            for part in range(parts):
                row, end = rows * part // parts, rows * (part + 1) // parts
                _multiply_panel(
                    packed + panel * num_inputs * _LINE, x + row * num_inputs * _BYTES,
                    start + has_bias * panel * _LINE, y + (row * width + panel * PANEL) * _BYTES, end - row, width,
                    num_inputs,
                )  # fmt: skip


PRODUCT = kernel(_product)

packed_linear = operator("packed_linear(Tensor x, Tensor packed, int num_outputs, Tensor? bias) -> Tensor", product)
"""`product` as an operator of torch."""
