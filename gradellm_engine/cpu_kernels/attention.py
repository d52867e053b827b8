"""Attention of a few new tokens of each sequence, forward, and backward with attribution maps, in float32.

It computes what `gradellm_engine.attention.ops` defines, as the Triton kernels do on a GPU: keys and values are read in
place from the pool, once forward and once backward. A task of the forward pass is some heads of one sequence that share
keys and values, or a single head where there are few sequences; a task of the backward pass is the heads of one token
that share keys and values.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from gradellm_engine.cpu_kernels.jit import as_float, compiled, exp, floats, integer, kernel, next_task
from gradellm_engine.cpu_kernels.team import FIRST_ARGUMENT, NUM_TASKS

_BYTES = 4
_BLOCK = 64  # keys that all heads of a task meet before the next ones
_FASTMATH = {"reassoc", "contract", "nsz"}

PRODUCTS, SIGNED_SUM, HEAD_ABS, KNOCKOUT = 1, 2, 3, 4  # those of `gradellm_engine.attention.fused.MapKind`


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
def _attend(q, q_head, keys, values, output, log_totals, scores, count, num_heads, D, Dv, scaling):
    """Some heads of one token over `count` keys. Addresses; scores is [num_heads, count] or larger."""
    for first in range(0, count, _BLOCK):
        for h in range(num_heads):
            query = carray(floats(q + h * q_head), D)
            for j in range(first, min(count, first + _BLOCK)):
                scores[h, j] = scaling * _dot(query, carray(floats(keys + j * D * _BYTES), D), D)
    for h in range(num_heads):
        carray(floats(log_totals + h * _BYTES), 1)[0] = _softmax(scores[h], count)
        out = carray(floats(output + h * Dv * _BYTES), Dv)
        for i in range(Dv):
            out[i] = np.float32(0)
    for first in range(0, count, _BLOCK):
        for h in range(num_heads):
            out = carray(floats(output + h * Dv * _BYTES), Dv)
            for j in range(first, min(count, first + _BLOCK)):
                _add_scaled(out, scores[h, j], carray(floats(values + j * Dv * _BYTES), Dv), Dv)


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
        if end - first > width:
            width = end - first
            scores = np.empty((per_task, width), np.float32)
        key = start + first
        _attend(
            q + row * q_token + head * q_head, q_head, K + head // r * k_head + key * D * _BYTES,
            V + head // r * v_head + key * Dv * _BYTES, output + (row * H + head) * Dv * _BYTES,
            log_totals + (row * H + head) * _BYTES, scores, end - first, per_task, D, Dv, scaling,
        )  # fmt: skip


@compiled()
def _visible(starts, lengths, row, T, window):
    """The pool position of a token's sequence, and the first and the end of the positions that the token sees."""
    end = integer(lengths + row // T * 8) - T + row % T + 1
    return integer(starts + row // T * 8), end, max(0, end - window)


@compiled()
def _explain(q, w, output, log_total, keys, values, maps, map_size, dq, count, D, Dv, scaling, kind, needs_input_grad):
    """One head of one token over `count` keys: adds to its maps and dq; the token's own a and dS. Addresses."""
    query, gradient = carray(floats(q), D), carray(floats(w), Dv)
    mean = _dot(gradient, carray(floats(output), Dv), Dv)  # sum_j a_j u_j
    by_query = carray(floats(dq), D)
    first_map, second_map = carray(floats(maps), count), carray(floats(maps + map_size), count)
    a = ds = np.float32(0)
    for j in range(count):
        key = carray(floats(keys + j * D * _BYTES), D)
        s = scaling * _dot(query, key, D)
        u = _dot(gradient, carray(floats(values + j * Dv * _BYTES), Dv), Dv)
        a = exp(s - log_total)
        dz = a * (u - mean)
        if kind == PRODUCTS:
            first_map[j] += s
            second_map[j] += u
        elif kind == SIGNED_SUM:
            first_map[j] += a * u
        elif kind == HEAD_ABS:
            first_map[j] += abs(a * u)
        elif kind == KNOCKOUT:
            first_map[j] += abs(dz)
        if needs_input_grad:
            ds = dz * scaling
            _add_scaled(by_query, ds, key, D)
    return a, ds


def _backward(arguments):
    """Maps [maps, B, G, T, L], dq [H, B T, D], dk [G, B T, D], dv [G, B T, Dv]; a task is a token's heads of a group.

    Maps are zero before.
    """
    given = carray(arguments, FIRST_ARGUMENT + 29)
    K, V, k_head, v_head, starts, lengths, T, H, r, D, Dv, window, scale_bits = given[
        FIRST_ARGUMENT : FIRST_ARGUMENT + 13
    ]
    q, q_head, q_token, w, w_head, w_token, output, log_totals = given[FIRST_ARGUMENT + 13 : FIRST_ARGUMENT + 21]
    maps, map_size, width, kind, dq, dk, dv, needs_input_grad = given[FIRST_ARGUMENT + 21 : FIRST_ARGUMENT + 29]
    groups, scaling = H // r, np.float32(as_float(scale_bits))
    tokens = given[NUM_TASKS] // groups
    while True:
        task = next_task(arguments)
        if task >= given[NUM_TASKS]:
            break
        row, g = task // groups, task % groups
        start, end, first = _visible(starts, lengths, row, T, window)
        length = integer(lengths + row // T * 8)
        key = start + first
        # The last of the `width` columns is the sequence's last token.
        column = ((row // T * groups + g) * T + row % T) * width + width - length + first
        own_k, own_v = (
            carray(floats(dk + (g * tokens + row) * D * _BYTES), D),
            carray(floats(dv + (g * tokens + row) * Dv * _BYTES), Dv),
        )
        if needs_input_grad:
            for i in range(D):
                own_k[i] = np.float32(0)
            for i in range(Dv):
                own_v[i] = np.float32(0)
        for head in range(g * r, g * r + r):
            query, gradient = q + row * q_token + head * q_head, w + row * w_token + head * w_head
            by_query = carray(floats(dq + (head * tokens + row) * D * _BYTES), D)
            if needs_input_grad:
                for i in range(D):
                    by_query[i] = np.float32(0)
            a, ds = _explain(
                query, gradient, output + (row * H + head) * Dv * _BYTES,
                carray(floats(log_totals + (row * H + head) * _BYTES), 1)[0], K + g * k_head + key * D * _BYTES,
                V + g * v_head + key * Dv * _BYTES, maps + column * _BYTES, map_size * _BYTES,
                dq + (head * tokens + row) * D * _BYTES, end - first, D, Dv, scaling, kind, needs_input_grad,
            )  # fmt: skip
            if needs_input_grad:
                _add_scaled(own_k, ds, carray(floats(query), D), D)
                _add_scaled(own_v, a, carray(floats(gradient), Dv), Dv)


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
            _copy(K + g * k_head + position * D * _BYTES, keys + g * key_head + row * key_token, D)
            _copy(V + g * v_head + position * Dv * _BYTES, values + g * value_head + row * value_token, Dv)


@compiled()
def _copy(to, source, width):
    y, x = carray(floats(to), width), carray(floats(source), width)
    for i in range(width):
        y[i] = x[i]


FORWARD, BACKWARD, STORE = kernel(_forward), kernel(_backward), kernel(_store)
