"""RMS norms, gated activations, rotary embeddings and distributions in one pass over memory each, in float32.

As torch's operators, each is six to fourteen passes over its rows, and as many calls: half of a decode step's time that
is not spent on reading weights.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import carray
from torch import Tensor

from gradellm_engine.cpu_kernels.jit import (
    as_float,
    compiled,
    copy,
    exp,
    floats,
    integer,
    kernel,
    next_task,
    set_integer,
)
from gradellm_engine.cpu_kernels.operators import operator
from gradellm_engine.cpu_kernels.team import FIRST_ARGUMENT, NUM_TASKS, bits, launch
from gradellm_engine.cpu_kernels.tiles import BYTES, PANEL, highest_number

NUMBERS_PER_TASK = 2**14  # fewer are computed before another thread has begun

_BLOCK = 32 * PANEL  # numbers among which the largest is looked for at once
_ONE, _TWO = np.float32(1), np.float32(2)
_FASTMATH = {"reassoc", "contract", "nsz"}  # NaN and infinity stay what they are


def _rows_per_task(width: int) -> int:
    return max(1, NUMBERS_PER_TASK // width)


# RMS norms -----------------------------------------------------------------------------------------------------------


def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """X (mean x^2 + eps)^(-1/2) scale. [.., width], [width] -> [.., width]"""
    x = x.contiguous()
    y, width = torch.empty_like(x), x.shape[-1]
    rows, per_task = x.numel() // width, _rows_per_task(width)
    launch(
        RMS_NORM, -(-rows // per_task), per_task, rows, width, bits(eps), x.data_ptr(), scale.data_ptr(), y.data_ptr()
    )
    return y


def rms_norm_backward(x: Tensor, scale: Tensor, eps: float, gradient: Tensor) -> Tensor:
    """The gradient by x from dl/dy: r (g - n mean(g n)) with g = (dl/dy) scale, r = (mean x^2 + eps)^(-1/2), n = x r.

    [.., width], [width], [.., width] -> [.., width]
    """
    x, gradient = x.contiguous(), gradient.contiguous()
    dx, width = torch.empty_like(x), x.shape[-1]
    rows, per_task = x.numel() // width, _rows_per_task(width)
    launch(
        RMS_NORM_BACKWARD, -(-rows // per_task), per_task, rows, width, bits(eps), x.data_ptr(), scale.data_ptr(),
        gradient.data_ptr(), dx.data_ptr(),
    )  # fmt: skip
    return dx


@compiled(fastmath=_FASTMATH)
def _inverse_rms(x, width, eps):
    squares = np.float32(0)
    for i in range(width):
        squares += x[i] * x[i]
    return _ONE / np.sqrt(squares / np.float32(width) + eps)


@compiled(fastmath=_FASTMATH)
def _norm_row(x, scale, y, width, eps):
    r = _inverse_rms(x, width, eps)
    for i in range(width):
        y[i] = x[i] * r * scale[i]


@compiled(fastmath=_FASTMATH)
def _norm_row_backward(x, scale, gradient, dx, width, eps):
    r = _inverse_rms(x, width, eps)
    along = np.float32(0)
    for i in range(width):
        along += gradient[i] * scale[i] * x[i]
    along *= r * r / np.float32(width)
    for i in range(width):
        dx[i] = r * (gradient[i] * scale[i] - x[i] * along)


def _rms_norm(arguments):
    """The kernel of `rms_norm`; a task is some rows."""
    values = carray(arguments, FIRST_ARGUMENT + 7)
    per_task, rows, width, eps, x, scale, y = values[FIRST_ARGUMENT:]
    scales = carray(floats(scale), width)
    while True:
        task = next_task(arguments)
        if task >= values[NUM_TASKS]:
            break
        for row in range(task * per_task, min(rows, (task + 1) * per_task)):
            offset = row * width * BYTES
            _norm_row(
                carray(floats(x + offset), width), scales, carray(floats(y + offset), width), width,
                np.float32(as_float(eps)),
            )  # fmt: skip


def _rms_norm_backward(arguments):
    """The kernel of `rms_norm_backward`; a task is some rows."""
    values = carray(arguments, FIRST_ARGUMENT + 8)
    per_task, rows, width, eps, x, scale, gradient, dx = values[FIRST_ARGUMENT:]
    scales = carray(floats(scale), width)
    while True:
        task = next_task(arguments)
        if task >= values[NUM_TASKS]:
            break
        for row in range(task * per_task, min(rows, (task + 1) * per_task)):
            offset = row * width * BYTES
            _norm_row_backward(
                carray(floats(x + offset), width), scales, carray(floats(gradient + offset), width),
                carray(floats(dx + offset), width), width, np.float32(as_float(eps)),
            )  # fmt: skip


# Gated activations ---------------------------------------------------------------------------------------------------


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """Gate sigmoid(gate) up. [.., width] twice, rows may be parts of wider ones -> [.., width]"""
    gate, up = _with_rows(gate), _with_rows(up)
    y, width = torch.empty(gate.shape), gate.shape[-1]
    rows, per_task = y.numel() // width, _rows_per_task(width)
    launch(
        SILU_MUL, -(-rows // per_task), per_task, rows, width, gate.data_ptr(), _row_stride(gate), up.data_ptr(),
        _row_stride(up), y.data_ptr(),
    )  # fmt: skip
    return y


def silu_mul_backward(
    gate: Tensor, up: Tensor, gradient: Tensor, *, propagates_relevance: bool = False
) -> tuple[Tensor, Tensor]:
    """The gradients by gate and up from dl/dy, side by side in memory. [.., width] each

    By the rules of relevance, sigmoid(gate) is a constant, and gate and up have half of the gradient each.
    """
    gate, up, gradient = _with_rows(gate), _with_rows(up), gradient.contiguous()
    width = gate.shape[-1]
    both = torch.empty((*gradient.shape[:-1], 2 * width))
    rows, per_task = gradient.numel() // width, _rows_per_task(width)
    launch(
        SILU_MUL_BACKWARD, -(-rows // per_task), per_task, rows, width, gate.data_ptr(), _row_stride(gate),
        up.data_ptr(), _row_stride(up), gradient.data_ptr(), both.data_ptr(), propagates_relevance,
    )  # fmt: skip
    return both[..., :width], both[..., width:]


def _with_rows(x: Tensor) -> Tensor:
    """`x` as rows of contiguous numbers, at equal distances. [.., width]"""
    is_regular = x.stride(-1) == 1 and (x.dim() < 3 or x.shape[0] == 1 or x.is_contiguous())
    return x if is_regular and x.dim() <= 3 else x.contiguous()


def _row_stride(x: Tensor) -> int:
    """Bytes between two rows."""
    return (x.stride(-2) if x.dim() > 1 else x.shape[-1]) * BYTES


@compiled(fastmath=_FASTMATH)
def _silu_mul_row(gate, up, y, width):
    for i in range(width):
        y[i] = gate[i] / (_ONE + exp(-gate[i])) * up[i]


@compiled(fastmath=_FASTMATH)
def _silu_mul_row_backward(gate, up, gradient, d_gate, d_up, width):
    for i in range(width):
        sigmoid = _ONE / (_ONE + exp(-gate[i]))
        d_up[i] = gradient[i] * gate[i] * sigmoid
        d_gate[i] = gradient[i] * up[i] * sigmoid * (_ONE + gate[i] * (_ONE - sigmoid))


@compiled(fastmath=_FASTMATH)
def _silu_mul_row_relevance(gate, up, gradient, d_gate, d_up, width):
    for i in range(width):
        half = gradient[i] / (_TWO + _TWO * exp(-gate[i]))
        d_up[i] = half * gate[i]
        d_gate[i] = half * up[i]


def _silu_mul(arguments):
    """The kernel of `silu_mul`; a task is some rows."""
    values = carray(arguments, FIRST_ARGUMENT + 8)
    per_task, rows, width, gate, gate_stride, up, up_stride, y = values[FIRST_ARGUMENT:]
    while True:
        task = next_task(arguments)
        if task >= values[NUM_TASKS]:
            break
        for row in range(task * per_task, min(rows, (task + 1) * per_task)):
            _silu_mul_row(
                carray(floats(gate + row * gate_stride), width), carray(floats(up + row * up_stride), width),
                carray(floats(y + row * width * BYTES), width), width,
            )  # fmt: skip


def _silu_mul_backward(arguments):
    """The kernel of `silu_mul_backward`; a task is some rows."""
    values = carray(arguments, FIRST_ARGUMENT + 10)
    per_task, rows, width, gate, gate_stride, up, up_stride, gradient, both, propagates_relevance = values[
        FIRST_ARGUMENT:
    ]
    while True:
        task = next_task(arguments)
        if task >= values[NUM_TASKS]:
            break
        for row in range(task * per_task, min(rows, (task + 1) * per_task)):
            offset = row * width * BYTES
            g, u = carray(floats(gate + row * gate_stride), width), carray(floats(up + row * up_stride), width)
            by_y, by_g = carray(floats(gradient + offset), width), carray(floats(both + 2 * offset), width)
            by_u = carray(floats(both + 2 * offset + width * BYTES), width)
            if propagates_relevance:
                _silu_mul_row_relevance(g, u, by_y, by_g, by_u, width)
            else:
                _silu_mul_row_backward(g, u, by_y, by_g, by_u, width)


# Sums ----------------------------------------------------------------------------------------------------------------


def add(x: Tensor, y: Tensor) -> Tensor:
    """The sum x + y of contiguous tensors of one shape."""
    total, count = torch.empty_like(x), x.numel()
    launch(ADD, -(-count // NUMBERS_PER_TASK), count, x.data_ptr(), y.data_ptr(), total.data_ptr())
    return total


def _add(arguments):
    """The kernel of `add`; a task is some numbers."""
    values = carray(arguments, FIRST_ARGUMENT + 4)
    count, x_address, y_address, total_address = values[FIRST_ARGUMENT:]
    x, y = carray(floats(x_address), count), carray(floats(y_address), count)
    total = carray(floats(total_address), count)
    while True:
        task = next_task(arguments)
        if task >= values[NUM_TASKS]:
            break
        for i in range(task * NUMBERS_PER_TASK, min(count, (task + 1) * NUMBERS_PER_TASK)):
            total[i] = x[i] + y[i]


# Rows ----------------------------------------------------------------------------------------------------------------


def store_rows(x: Tensor, pool: Tensor, rows: Tensor) -> None:
    """Write rows of x to those of a pool. [n, width], [N, width], [n]; rows of x may be parts of wider ones"""
    launch(
        COPY_ROWS, len(rows), x.data_ptr(), _row_stride(x), pool.data_ptr(), _row_stride(pool), rows.data_ptr(),
        x.shape[-1], 1,
    )  # fmt: skip


def load_rows(pool: Tensor, rows: Tensor) -> Tensor:
    """Rows of a pool. [N, width], [n] -> [1, n, width]"""
    y = torch.empty((1, len(rows), pool.shape[-1]))
    launch(
        COPY_ROWS, len(rows), pool.data_ptr(), _row_stride(pool), y.data_ptr(), _row_stride(y), rows.data_ptr(),
        pool.shape[-1], 0,
    )  # fmt: skip
    return y


def _copy_rows(arguments):
    """The kernel of `store_rows` and `load_rows`; a task is a row."""
    values = carray(arguments, FIRST_ARGUMENT + 7)
    x, x_stride, y, y_stride, rows, width, is_store = values[FIRST_ARGUMENT:]
    while True:
        task = next_task(arguments)
        if task >= values[NUM_TASKS]:
            break
        row = integer(rows + 8 * task)
        source, target = (task, row) if is_store else (row, task)
        copy(y + target * y_stride, x + source * x_stride, width)


# Distributions -------------------------------------------------------------------------------------------------------


def best_and_logsumexp(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The index of each row's largest number, the first of equals, and the row's logsumexp. [T, V] -> [T], [T]"""
    logits = logits.contiguous()
    rows, width = logits.shape
    best, logsumexp = torch.empty(rows, dtype=torch.long), torch.empty(rows)
    launch(BEST_AND_LOGSUMEXP, rows, width, logits.data_ptr(), best.data_ptr(), logsumexp.data_ptr())
    return best, logsumexp


@compiled()
def _best(x, width):
    """The index of the largest number at an address, the first of equals; 0 where all are NaN."""
    best, highest, j = 0, -np.inf, 0
    while j < width:
        end = j + _BLOCK if j + _BLOCK <= width else j + 1  # the last numbers one by one
        at_most = highest_number(x + j * BYTES, _BLOCK) if end > j + 1 else carray(floats(x + j * BYTES), 1)[0]
        if at_most > highest:
            highest = at_most
            numbers = carray(floats(x + j * BYTES), end - j)
            best = j
            while numbers[best - j] != highest:
                best += 1
        j = end
    return best


@compiled(fastmath=_FASTMATH)
def _sum_of_powers(x, width, highest):
    total = np.float32(0)
    for i in range(width):
        total += exp(x[i] - highest)
    return total


def _best_and_logsumexp(arguments):
    """The kernel of `best_and_logsumexp`; a task is a row."""
    values = carray(arguments, FIRST_ARGUMENT + 4)
    width, logits, best, logsumexp = values[FIRST_ARGUMENT:]
    while True:
        row = next_task(arguments)
        if row >= values[NUM_TASKS]:
            break
        address = logits + row * width * BYTES
        numbers = carray(floats(address), width)
        index = _best(address, width)
        set_integer(best + 8 * row, index)
        carray(floats(logsumexp + BYTES * row), 1)[0] = numbers[index] + np.log(
            _sum_of_powers(numbers, width, numbers[index])
        )


# Rotary embeddings ---------------------------------------------------------------------------------------------------


def rotate_halves(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, sign: float) -> tuple[Tensor, Tensor]:
    """Queries and keys rotated: halves (a, b) become (a cos - s b sin, b cos + s a sin), with the sign s.

    [1, H, T, D], [1, G, T, D], [1, T, D] twice -> [1, H, T, D], [1, G, T, D], heads of a token adjacent in memory
    """
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    cos, sin = cos.contiguous(), sin.contiguous()
    (_, H, T, D), G = q.shape, k.shape[1]
    new_q, new_k = torch.empty((1, T, H, D)), torch.empty((1, T, G, D))
    per_task = _rows_per_task(H * D)
    launch(
        ROTATE_HALVES, -(-T // per_task), per_task, T, D, cos.data_ptr(), sin.data_ptr(), bits(sign),
        H, q.data_ptr(), q.stride(1) * BYTES, q.stride(2) * BYTES, new_q.data_ptr(),
        G, k.data_ptr(), k.stride(1) * BYTES, k.stride(2) * BYTES, new_k.data_ptr(),
    )  # fmt: skip
    return new_q.transpose(1, 2), new_k.transpose(1, 2)


@compiled()  # without fused multiply-add, so that numbers are those of torch's operators
def _rotate_token(cos, sin, D, sign, num_heads, x, head_stride, y):
    cosines, sines, half = carray(floats(cos), D), carray(floats(sin), D), D // 2
    for h in range(num_heads):
        head, rotated = carray(floats(x + h * head_stride), D), carray(floats(y + h * D * BYTES), D)
        for i in range(half):
            a, b = head[i], head[half + i]
            rotated[i] = a * cosines[i] - sign * b * sines[i]
            rotated[half + i] = b * cosines[half + i] + sign * a * sines[half + i]


def _rotate_halves(arguments):
    """The kernel of `rotate_halves`; a task is some tokens."""
    values = carray(arguments, FIRST_ARGUMENT + 16)
    per_task, T, D, cos, sin, sign_bits = values[FIRST_ARGUMENT : FIRST_ARGUMENT + 6]
    sign = np.float32(as_float(sign_bits))
    while True:
        task = next_task(arguments)
        if task >= values[NUM_TASKS]:
            break
        for t in range(task * per_task, min(T, (task + 1) * per_task)):
            row = t * D * BYTES
            for first in (FIRST_ARGUMENT + 6, FIRST_ARGUMENT + 11):
                num_heads, x, head_stride, token_stride, y = values[first : first + 5]
                _rotate_token(
                    cos + row, sin + row, D, sign, num_heads, x + t * token_stride, head_stride, y + num_heads * row
                )


RMS_NORM, RMS_NORM_BACKWARD = kernel(_rms_norm), kernel(_rms_norm_backward)
SILU_MUL, SILU_MUL_BACKWARD = kernel(_silu_mul), kernel(_silu_mul_backward)
ADD, ROTATE_HALVES = kernel(_add), kernel(_rotate_halves)
COPY_ROWS, BEST_AND_LOGSUMEXP = kernel(_copy_rows), kernel(_best_and_logsumexp)

rms_norm_op = operator("rms_norm(Tensor x, Tensor scale, float eps) -> Tensor", rms_norm)
rms_norm_backward_op = operator(
    "rms_norm_backward(Tensor x, Tensor scale, float eps, Tensor gradient) -> Tensor", rms_norm_backward
)
silu_mul_op = operator("silu_mul(Tensor gate, Tensor up) -> Tensor", silu_mul)
silu_mul_backward_op = operator(
    "silu_mul_backward(Tensor gate, Tensor up, Tensor gradient, *, bool propagates_relevance) -> (Tensor, Tensor)",
    silu_mul_backward,
)
rotate_halves_op = operator(
    "rotate_halves(Tensor q, Tensor k, Tensor cos, Tensor sin, float sign) -> (Tensor, Tensor)", rotate_halves
)
