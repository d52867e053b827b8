"""Attention of a few new tokens of each sequence, forward, and backward with attribution maps, in float32.

It computes what `gradellm_engine.attention.ops` defines, as the Triton kernels do on a GPU: keys and values are read in
place from the pool, once forward and once backward. A task of the forward pass is some heads of one sequence that share
keys and values, or a single head where there are few sequences; a task of the backward pass is the heads of one token
that share keys and values.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from gradellm_engine.cpu_kernels.jit import as_float, compiled, copy, exp, floats, integer, kernel, next_task
from gradellm_engine.cpu_kernels.team import FIRST_ARGUMENT, NUM_TASKS
from gradellm_engine.cpu_kernels.tiles import BYTES, LANES, LINE, MAX_ROWS, PANEL, add_tile, multiply_rows

_FASTMATH = {"reassoc", "contract", "nsz"}

MIN_SOURCE_WEIGHT = np.float32(1e-12)  # that of `gradellm_engine.attention.ops`

ALL = 2  # of `gradellm_engine.attention.ops.InputGradient`, whose 0 is for nothing
# Those of `gradellm_engine.attention.fused.MapKind`.
PRODUCTS, SIGNED_SUM, HEAD_ABS, KNOCKOUT, HEAD_POSITIVE, KNOCKOUT_POSITIVE = 1, 2, 3, 4, 5, 6


@compiled(fastmath=_FASTMATH)
def _dot(x, y, width):
    total = np.float32(0)
    for i in range(width):
        total += x[i] * y[i]
    return total


@compiled(fastmath=_FASTMATH)
def _add_scaled(y, factor, x, width):
    for i in range(width):
        y[i] += factor * x[i]


@compiled()
def _fill_with_zeros(numbers, width):
    carray(floats(numbers), width)[:] = np.float32(0)


@compiled(fastmath=_FASTMATH)
def _softmax(scores, count):
    """Scores to weights, in place; returns the log-sum-exp of the scores."""
    highest = scores[0]
    for j in range(count):
        highest = max(highest, scores[j])
    total = np.float32(0)
    for j in range(count):
        scores[j] = exp(scores[j] - highest)
        total += scores[j]
    for j in range(count):
        scores[j] /= total
    return highest + np.log(total)


@compiled()
def _products(q, q_head, num_heads, keys, width, factor, products, product_stride, count):
    """Products of each head's query with `count` keys, times a factor. Addresses; -> [num_heads, count]"""
    if width % LANES == 0:
        for head in range(0, num_heads, MAX_ROWS):
            multiply_rows(
                min(MAX_ROWS, num_heads - head), q + head * q_head, q_head, keys, width * BYTES, width, factor,
                products + head * product_stride, product_stride, count,
            )  # fmt: skip
        return
    for head in range(num_heads):
        query = carray(floats(q + head * q_head), width)
        products_of_head = carray(floats(products + head * product_stride), count)
        for j in range(count):
            products_of_head[j] = factor * _dot(query, carray(floats(keys + j * width * BYTES), width), width)


@compiled()
def _weighted_sums(weights, weight_stride, num_heads, rows, width, sums, sum_stride, count):
    """Each head's sum of `count` rows by its weights. Addresses; [num_heads, count], [count, width] -> [., width]"""
    for head in range(num_heads):
        _fill_with_zeros(sums + head * sum_stride, width)
    panels = width // PANEL
    for head in range(0, num_heads, MAX_ROWS):
        for panel in range(panels):
            total = sums + head * sum_stride + panel * LINE
            add_tile(
                min(MAX_ROWS, num_heads - head), rows + panel * LINE, weights + head * weight_stride, total, total,
                count, width * BYTES, weight_stride, BYTES, sum_stride, sum_stride, rows, 0,
            )  # fmt: skip
    rest = width - panels * PANEL
    if rest:
        offset = panels * LINE
        for head in range(num_heads):
            weights_of_head = carray(floats(weights + head * weight_stride), count)
            total_of_head = carray(floats(sums + head * sum_stride + offset), rest)
            for j in range(count):
                row = carray(floats(rows + j * width * BYTES + offset), rest)
                _add_scaled(total_of_head, weights_of_head[j], row, rest)


def _forward(arguments):
    """Outputs [B T, H, Dv] and log-sum-exps [B T, H] of queries [H, B T, D]; a task is `per_task` heads of a token."""
    given = carray(arguments, FIRST_ARGUMENT + 19)
    K, V, k_head, v_head, starts, lengths, T, H, r, D, Dv, window, scale_bits = given[
        FIRST_ARGUMENT : FIRST_ARGUMENT + 13
    ]
    q, q_head, q_token, output, log_totals, per_task = given[FIRST_ARGUMENT + 13 : FIRST_ARGUMENT + 19]
    parts, scaling, width = H // per_task, np.float32(as_float(scale_bits)), 0
    scores = np.empty((per_task, 1), np.float32)
    while True:
        task = next_task(arguments)
        if task >= given[NUM_TASKS]:
            break
        row, head = task // parts, task % parts * per_task
        start, end, first = _visible(starts, lengths, row, T, window)
        count = end - first
        if count > width:
            width = count
            scores = np.empty((per_task, width), np.float32)
        keys = K + head // r * k_head + (start + first) * D * BYTES
        values = V + head // r * v_head + (start + first) * Dv * BYTES
        _products(
            q + row * q_token + head * q_head, q_head, per_task, keys, D, scaling, scores.ctypes.data, width * BYTES,
            count,
        )  # fmt: skip
        totals = carray(floats(log_totals + (row * H + head) * BYTES), per_task)
        for h in range(per_task):
            totals[h] = _softmax(scores[h], count)
        _weighted_sums(
            scores.ctypes.data, width * BYTES, per_task, values, Dv, output + (row * H + head) * Dv * BYTES, Dv * BYTES,
            count,
        )  # fmt: skip


@compiled()
def _visible(starts, lengths, row, T, window):
    """The pool position of a token's sequence, and the first and the end of the positions that the token sees."""
    end = integer(lengths + row // T * 8) - T + row % T + 1
    return integer(starts + row // T * 8), end, max(0, end - window)


@compiled(fastmath=_FASTMATH)
def _inverse_sum(weights, first, count):
    """1 / the sum of some weights; 0 where it is below MIN_SOURCE_WEIGHT."""
    total = np.float32(0)
    for j in range(first, count):
        total += weights[j]
    return np.float32(0) if total < MIN_SOURCE_WEIGHT else np.float32(1) / total


@compiled(fastmath=_FASTMATH)
def _partial_dot(x, y, first, count):
    """The dot product without the first numbers."""
    total = np.float32(0)
    for j in range(first, count):
        total += x[j] * y[j]
    return total


@compiled(fastmath=_FASTMATH)
def _explain(s, u, first_map, second_map, log_total, mean, scaling, kind, first_source, count):
    """Add one head's maps over `count` keys; s becomes a, and u becomes dS. Returns the last key's a and dS.

    Keys before `first_source` are no sources.
    """
    if kind == PRODUCTS:
        for j in range(count):
            first_map[j] += s[j]
            second_map[j] += u[j]
    for j in range(count):
        s[j] = exp(s[j] - log_total)
    if kind > PRODUCTS:
        factor, center = np.float32(1), np.float32(0)
        if first_source:
            factor = _inverse_sum(s, first_source, count)
        if kind in (KNOCKOUT, KNOCKOUT_POSITIVE):
            center = mean
            if first_source:
                center = factor * _partial_dot(s, u, first_source, count)
        if kind == SIGNED_SUM:
            for j in range(first_source, count):
                first_map[j] += factor * s[j] * u[j]
        elif kind in (HEAD_ABS, KNOCKOUT):
            for j in range(first_source, count):
                first_map[j] += abs(factor * s[j] * (u[j] - center))
        else:
            for j in range(first_source, count):
                effect = factor * s[j] * (u[j] - center)
                first_map[j] += np.float32(0) if effect < 0 else effect  # NaN stays
    for j in range(count):
        u[j] = scaling * (s[j] * (u[j] - mean))
    return s[count - 1], u[count - 1]


def _backward(arguments):
    """Maps [maps, B, G, T, L], dq [H, B T, D], dk [G, B T, D], dv [G, B T, Dv].

    A task is the heads of a token that share keys and values.
    """
    given = carray(arguments, FIRST_ARGUMENT + 31)
    K, V, k_head, v_head, starts, lengths, T, H, r, D, Dv, window, scale_bits = given[
        FIRST_ARGUMENT : FIRST_ARGUMENT + 13
    ]
    q, q_head, q_token, w, w_head, w_token, output, log_totals = given[FIRST_ARGUMENT + 13 : FIRST_ARGUMENT + 21]
    maps, map_size, num_maps, width, kind, excludes_sink, dq, dk, dv, needs = given[
        FIRST_ARGUMENT + 21 : FIRST_ARGUMENT + 31
    ]
    groups, scaling, one = H // r, np.float32(as_float(scale_bits)), np.float32(1)
    tokens = given[NUM_TASKS] // groups
    s, u = np.empty((r, width), np.float32), np.empty((r, width), np.float32)
    stride = width * BYTES
    while True:
        task = next_task(arguments)
        if task >= given[NUM_TASKS]:
            break
        row, g = task // groups, task % groups
        head = g * r
        start, end, first = _visible(starts, lengths, row, T, window)
        count, length = end - first, integer(lengths + row // T * 8)
        first_source = 1 if excludes_sink and first == 0 else 0
        keys = K + g * k_head + (start + first) * D * BYTES
        values = V + g * v_head + (start + first) * Dv * BYTES
        queries, gradients = q + row * q_token + head * q_head, w + row * w_token + head * w_head
        _products(queries, q_head, r, keys, D, scaling, s.ctypes.data, stride, count)
        _products(gradients, w_head, r, values, Dv, one, u.ctypes.data, stride, count)
        row_of_maps = maps + ((row // T * groups + g) * T + row % T) * width * BYTES
        for i in range(num_maps):
            _fill_with_zeros(row_of_maps + i * map_size * BYTES, width)
        column = row_of_maps + (width - length + first) * BYTES  # the last one is the sequence's last token
        first_map, second_map = carray(floats(column), count), carray(floats(column + map_size * BYTES), count)
        own_k = carray(floats(dk + (g * tokens + row) * D * BYTES), D)
        own_v = carray(floats(dv + (g * tokens + row) * Dv * BYTES), Dv)
        if needs:
            own_k[:] = np.float32(0)
            own_v[:] = np.float32(0)
        for h in range(r):
            gradient = carray(floats(gradients + h * w_head), Dv)
            mean = _dot(gradient, carray(floats(output + (row * H + head + h) * Dv * BYTES), Dv), Dv)  # sum_j a_j u_j
            log_total = carray(floats(log_totals + (row * H + head + h) * BYTES), 1)[0]
            a, ds = _explain(s[h], u[h], first_map, second_map, log_total, mean, scaling, kind, first_source, count)
            if needs == ALL:
                _add_scaled(own_k, ds, carray(floats(queries + h * q_head), D), D)
            if needs:
                _add_scaled(own_v, a, gradient, Dv)
        if needs == ALL:
            _weighted_sums(
                u.ctypes.data, stride, r, keys, D, dq + (head * tokens + row) * D * BYTES, tokens * D * BYTES, count
            )


def _store(arguments):
    """New keys [G, B T, D] and values [G, B T, Dv] to the pool; a task is a key-value head."""
    given = carray(arguments, FIRST_ARGUMENT + 16)
    K, V, k_head, v_head, starts, lengths, T, tokens, D, Dv = given[FIRST_ARGUMENT : FIRST_ARGUMENT + 10]
    keys, key_head, key_token, values, value_head, value_token = given[FIRST_ARGUMENT + 10 : FIRST_ARGUMENT + 16]
    while True:
        g = next_task(arguments)
        if g >= given[NUM_TASKS]:
            break
        for row in range(tokens):
            start, end, _ = _visible(starts, lengths, row, T, 1)
            position = start + end - 1
            copy(K + g * k_head + position * D * BYTES, keys + g * key_head + row * key_token, D)
            copy(V + g * v_head + position * Dv * BYTES, values + g * value_head + row * value_token, Dv)


FORWARD, BACKWARD, STORE = kernel(_forward), kernel(_backward), kernel(_store)
