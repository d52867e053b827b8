"""Attention of a prompt's tokens, in float32: softmax(c q K^T) V over the keys that each token sees.

A task is PANEL consecutive tokens of one head. Its queries are transposed once, so that products, weights and outputs
have a line of PANEL queries for each key or each dimension, and keys and values are read in place:

    S^T = K q^T               [keys, PANEL], of the keys that some query of the task sees
    P^T = exp(S^T - max)      over the keys of each query
    o^T = V^T P^T / sum       [Dv, PANEL]

All three are loops over whole lines: no sum runs across a register.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from gradellm_engine.cpu_kernels.jit import as_float, compiled, floats, kernel, next_task
from gradellm_engine.cpu_kernels.team import FIRST_ARGUMENT, NUM_TASKS
from gradellm_engine.cpu_kernels.tiles import BYTES, LINE, MAX_ROWS, PANEL, add_tile, softmax_columns

_BLOCK = 128  # keys whose weights stay in the first-level cache while they are multiplied with the values


@compiled()
def _products(q, K, scores, count, D, zeros):
    """S^T of `count` keys: [PANEL queries, transposed] times each key."""
    for first in range(0, count, MAX_ROWS):
        rows = min(MAX_ROWS, count - first)
        add_tile(
            rows, q, K + first * D * BYTES, zeros, scores + first * LINE, D, LINE, D * BYTES, BYTES, 0, LINE, q, 0
        )  # fmt: skip


@compiled()
def _weighted_sums(weights, V, output, count, Dv):
    """o^T += V^T P^T of `count` keys."""
    for key in range(0, count, _BLOCK):
        depth = min(_BLOCK, count - key)
        for first in range(0, Dv, MAX_ROWS):
            rows = min(MAX_ROWS, Dv - first)
            line = output + first * LINE
            block = weights + key * LINE
            add_tile(
                rows,
                block,
                V + (key * Dv + first) * BYTES,
                line,
                line,
                depth,
                LINE,
                BYTES,
                Dv * BYTES,
                LINE,
                LINE,
                block,
                0,
            )


@compiled()
def _transpose_queries(q, q_token, count, D, lines):
    """Queries of `count` tokens, and zeros for those that a panel lacks. -> [D, PANEL]"""
    for column in range(PANEL):
        if column < count:
            query = carray(floats(q + column * q_token), D)
            for d in range(D):
                lines[d, column] = query[d]
        else:
            for d in range(D):
                lines[d, column] = np.float32(0)


@compiled()
def _write_outputs(lines, totals, count, Dv, output, token_stride):
    """O of `count` tokens from o^T, which is divided by each query's sum of weights."""
    for column in range(count):
        row, inverse = carray(floats(output + column * token_stride), Dv), np.float32(1) / totals[column]
        for d in range(Dv):
            row[d] = lines[d, column] * inverse


def _prefill(arguments):
    """Outputs [T, H, Dv] of queries [H, T, D]; the first query's own key is the one at `before`."""
    given = carray(arguments, FIRST_ARGUMENT + 16)
    q, q_head, q_token, K, V, k_head, v_head, T, before, H, r, D, Dv, window, scale_bits, output = given[
        FIRST_ARGUMENT:
    ]
    scaling, blocks = np.float32(as_float(scale_bits)), (T + PANEL - 1) // PANEL
    queries, outputs = np.empty((D, PANEL), np.float32), np.empty((Dv, PANEL), np.float32)
    zeros, totals = np.zeros(PANEL, np.float32), np.empty(PANEL, np.float32)
    scores = np.empty((before + T, PANEL), np.float32)
    while True:
        task = next_task(arguments)
        if task >= given[NUM_TASKS]:
            break
        head, block = task % H, blocks - 1 - task // H  # the longest first, so that threads end together
        token = block * PANEL
        count = min(PANEL, T - token)
        first_key = max(0, before + token + 1 - window)
        keys = before + token + count - first_key
        group = head // r
        _transpose_queries(q + head * q_head + token * q_token, q_token, count, D, queries)
        _products(
            queries.ctypes.data, K + group * k_head + first_key * D * BYTES, scores.ctypes.data, keys, D,
            zeros.ctypes.data,
        )  # fmt: skip
        softmax_columns(
            scores.ctypes.data, keys, scaling, first_key, before + token, window, totals.ctypes.data
        )  # fmt: skip
        outputs[:] = np.float32(0)
        _weighted_sums(
            scores.ctypes.data, V + group * v_head + first_key * Dv * BYTES, outputs.ctypes.data, keys, Dv
        )  # fmt: skip
        _write_outputs(outputs, totals, count, Dv, output + (token * H + head) * Dv * BYTES, H * Dv * BYTES)


PREFILL = kernel(_prefill)
