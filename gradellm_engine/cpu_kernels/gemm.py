"""Products of few or many rows with a packed weight: y = x W^T + b in float32, with a weight in float32 or bfloat16.

A decode step's time is that of reading weights, once each, as fast as memory delivers them; libraries are made for
square products, and reach half of it. Here the weight is packed in panels of PANEL outputs, [out / PANEL, in, PANEL].
A thread takes a panel, and of it BLOCK inputs at a time, which fit the first-level cache; for every MAX_ROWS rows of x
it keeps a tile of y in registers, loads a vector of the panel for each input, and adds to each row. Meanwhile the next
block is fetched, in equal parts by each tile, so that memory is never idle. Of many rows, as many inputs as fit the
second-level cache are multiplied with all panels of a task before the next ones.

A weight in bfloat16 takes half of the memory, and half of the time to read. Its panels hold pairs of inputs,
[out / PANEL, in / 2, PANEL, 2]. Processors that multiply bfloat16 numbers take x rounded to bfloat16, two products in
the time of one; others take x as it is, and widen the weights in registers. Sums are in float32 in any case.

A row's sum always runs over the inputs in ascending order, so a row's result does not depend on the other rows.
"""

from __future__ import annotations

import torch
from numba import carray
from torch import Tensor

from gradellm_engine.cpu_kernels.jit import compiled, kernel, next_task
from gradellm_engine.cpu_kernels.operators import operator
from gradellm_engine.cpu_kernels.team import FIRST_ARGUMENT, NUM_TASKS, launch
from gradellm_engine.cpu_kernels.tiles import (
    BYTES,
    HAS_BFLOAT16,
    LINE,
    MAX_ROWS,
    PANEL,
    add_pair_tile,
    add_tile,
    add_widened_tile,
    round_numbers,
)

BLOCK = 192  # inputs, or pairs of them
MAX_TILED_ROWS = 192  # rows of x that are multiplied with all panels of a task
CACHED_BYTES = 2**18 + 2**17  # of x, that stay in the second-level cache meanwhile
MIN_SPLIT_ROWS = 4  # from which rows are two tiles at least, of which each fetches a part of the next block
TASKS_PER_THREAD = 4
NUMBERS_PER_TASK = 2**14  # that are rounded

_PREFETCH_DISTANCE = 128  # lines, where a block is read once
_ZEROS = torch.zeros(PANEL)
_add_bfloat16_tile = add_pair_tile if HAS_BFLOAT16 else add_widened_tile


def pack(weight: Tensor) -> Tensor:
    """The panels of a weight in float32 or bfloat16; outputs and inputs that the last lack are zeros.

    [out, in] -> [panels, in, PANEL], or [panels, pairs, 2 PANEL] in bfloat16
    """
    group = 2 if weight.dtype is torch.bfloat16 else 1
    missing = (0, -weight.shape[1] % group, 0, -weight.shape[0] % PANEL)
    padded = torch.nn.functional.pad(weight, missing) if any(missing) else weight
    panels = padded.view(-1, PANEL, padded.shape[1] // group, group).transpose(1, 2)
    return panels.flatten(2).contiguous()


def product(x: Tensor, packed: Tensor, num_outputs: int, bias: Tensor | None) -> Tensor:
    """The product x W^T + b in float32. [.., in], the panels of W, out, [out] -> [.., out]"""
    num_panels, lines, _ = packed.shape
    takes_pairs = packed.dtype is torch.bfloat16
    if takes_pairs and x.shape[-1] % 2:
        x = torch.nn.functional.pad(x, (0, 1))
    x, shape, width = x.contiguous(), x.shape[:-1], num_panels * PANEL
    rows = x.numel() // x.shape[-1]
    if takes_pairs and HAS_BFLOAT16:
        x = rounded(x)
    y = torch.empty((*shape, width))
    if bias is not None and (num_outputs != width or bias.dtype is not torch.float32):
        bias = torch.nn.functional.pad(bias.float(), (0, width - num_outputs))
    start = _ZEROS if bias is None else bias
    per_task = max(1, num_panels // (TASKS_PER_THREAD * torch.get_num_threads()))
    launch(
        PRODUCT, -(-num_panels // per_task), packed.data_ptr(), x.data_ptr(), start.data_ptr(), y.data_ptr(),
        bias is not None, rows, num_panels, lines, x.shape[-1] * x.itemsize // lines, takes_pairs, per_task,
    )  # fmt: skip
    return y if num_outputs == width else y[..., :num_outputs]


def rounded(x: Tensor) -> Tensor:
    """Contiguous float32 numbers in bfloat16, where the processor has it."""
    y, count = torch.empty(x.shape, dtype=torch.bfloat16), x.numel()
    launch(ROUND, -(-count // NUMBERS_PER_TASK), x.data_ptr(), y.data_ptr(), count)
    return y


@compiled()
def _multiply_blocks(
    panel, x, start, y, rows, width, lines, x_step, takes_pairs, blocks, first_block, end_block, after
):
    """Some blocks of one panel times some rows of x; `start` and `y` are the addresses of the panel's first output.

    `after` is the address of the weights that are read next.
    """
    tiles = (rows + MAX_ROWS - 1) // MAX_ROWS
    if rows >= MIN_SPLIT_ROWS:
        tiles = max(2, tiles)
    for i in range(first_block, end_block):
        first, end = lines * i // blocks, lines * (i + 1) // blocks
        block, depth = panel + first * LINE, end - first
        following = block + depth * LINE if i + 1 < end_block else after
        for j in range(tiles):
            row, next_row = rows * j // tiles, rows * (j + 1) // tiles
            fetched, step = block + _PREFETCH_DISTANCE * LINE, LINE
            if tiles > 1:  # the next block, a part of it by each tile
                fetched, step = following + depth * LINE * j // tiles, LINE // tiles
            outputs = y + row * width * BYTES
            inputs, sums = x + (row * lines + first) * x_step, outputs if i else start
            sums_stride = width * BYTES if i else 0
            if takes_pairs:
                _add_bfloat16_tile(
                    next_row - row, block, inputs, sums, outputs, depth, LINE, lines * x_step, x_step, sums_stride,
                    width * BYTES, fetched, step,
                )  # fmt: skip
            else:
                add_tile(
                    next_row - row, block, inputs, sums, outputs, depth, LINE, lines * x_step, x_step, sums_stride,
                    width * BYTES, fetched, step,
                )  # fmt: skip


def _product(arguments):
    """The kernel of `product`; a task is some panels."""
    values = carray(arguments, FIRST_ARGUMENT + 11)
    packed, x, start, y, has_bias, rows, num_panels, lines, x_step, takes_pairs, per_task = values[FIRST_ARGUMENT:]
    width, blocks = num_panels * PANEL, (lines + BLOCK - 1) // BLOCK
    parts = (rows + MAX_TILED_ROWS - 1) // MAX_TILED_ROWS
    blocks_at_once = max(1, CACHED_BYTES * parts // max(1, rows * BLOCK * x_step))
    while True:
        task = next_task(arguments)
        if task >= values[NUM_TASKS]:
            break
        for part in range(parts):
            row, end = rows * part // parts, rows * (part + 1) // parts
            for block in range(0, blocks, blocks_at_once):
                next_block = min(blocks, block + blocks_at_once)
                for panel in range(task * per_task, min(num_panels, (task + 1) * per_task)):
                    weights = packed + panel * lines * LINE
                    _multiply_blocks(
                        weights, x + row * lines * x_step, start + has_bias * panel * LINE,
                        y + (row * width + panel * PANEL) * BYTES, end - row, width, lines, x_step, takes_pairs,
                        blocks, block, next_block, weights + (lines + lines * block // blocks) * LINE,
                    )  # fmt: skip


def _round(arguments):
    """The kernel of `rounded`; a task is some numbers."""
    values = carray(arguments, FIRST_ARGUMENT + 3)
    x, y, count = values[FIRST_ARGUMENT:]
    while True:
        task = next_task(arguments)
        if task >= values[NUM_TASKS]:
            break
        first = task * NUMBERS_PER_TASK
        round_numbers(x + first * BYTES, y + first * 2, min(count - first, NUMBERS_PER_TASK))


PRODUCT = kernel(_product)
ROUND = kernel(_round) if HAS_BFLOAT16 else 0

packed_linear = operator("packed_linear(Tensor x, Tensor packed, int num_outputs, Tensor? bias) -> Tensor", product)
"""`product` as an operator of torch."""
