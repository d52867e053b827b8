"""Attention of prompts' tokens, in float32: softmax(c q K^T) V over the keys that each token sees.

The tokens of a pass are in panels of at most PANEL consecutive tokens of one prompt. A table has a row for each:

    the panel's first token in the pass; its number of tokens; the prompt's first position in the pool; tokens of the
    prompt before the panel

A task is a panel of one head. Its queries are transposed once, so that products, weights and outputs have a line of
PANEL queries for each key or each dimension, and keys and values are read in place:

    S^T = K q^T               [keys, PANEL], of the keys that some query of the task sees
    P^T = exp(S^T - max)      over the keys of each query
    o^T = V^T P^T / sum       [Dv, PANEL]

All three are loops over whole lines: no sum runs across a register.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from gradellm_engine.cpu_kernels.jit import as_float, compiled, copy, floats, integer, kernel, next_task
from gradellm_engine.cpu_kernels.team import FIRST_ARGUMENT, NUM_TASKS
from gradellm_engine.cpu_kernels.tiles import BYTES, LINE, MAX_ROWS, PANEL, add_tile, softmax_columns

COLUMNS = 4  # of the table of panels, which has 64-bit integers
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


@compiled()
def _panel(panels, index):
    """A row of the table of panels; see the module's docstring."""
    row = panels + 8 * COLUMNS * index
    return integer(row), integer(row + 8), integer(row + 16), integer(row + 24)


def _prefill(arguments):
    """Outputs [T, H, Dv] of queries [H, T, D], after `_store_panels`."""
    given = carray(arguments, FIRST_ARGUMENT + 15)
    q, q_head, q_token, K, V, k_head, v_head, panels, H, r, D, Dv, window, scale_bits, output = given[FIRST_ARGUMENT:]
    scaling, longest = np.float32(as_float(scale_bits)), 0
    queries, outputs = np.empty((D, PANEL), np.float32), np.empty((Dv, PANEL), np.float32)
    zeros, totals = np.zeros(PANEL, np.float32), np.empty(PANEL, np.float32)
    scores = np.empty((1, PANEL), np.float32)
    while True:
        task = next_task(arguments)
        if task >= given[NUM_TASKS]:
            break
        head, group = task % H, task % H // r
        token, count, start, before = _panel(panels, task // H)
        first_key = max(0, before + 1 - window)
        keys = before + count - first_key
        if keys > longest:
            longest = keys
            scores = np.empty((longest, PANEL), np.float32)
        _transpose_queries(q + head * q_head + token * q_token, q_token, count, D, queries)
        _products(
            queries.ctypes.data, K + group * k_head + (start + first_key) * D * BYTES, scores.ctypes.data, keys, D,
            zeros.ctypes.data,
        )  # fmt: skip
        softmax_columns(scores.ctypes.data, keys, scaling, first_key, before, window, totals.ctypes.data)
        outputs[:] = np.float32(0)
        _weighted_sums(
            scores.ctypes.data, V + group * v_head + (start + first_key) * Dv * BYTES, outputs.ctypes.data, keys, Dv
        )  # fmt: skip
        _write_outputs(outputs, totals, count, Dv, output + (token * H + head) * Dv * BYTES, H * Dv * BYTES)


def _store_panels(arguments):
    """New keys [G, T, D] and values [G, T, Dv] to the pool; a task is a panel of one key-value head."""
    given = carray(arguments, FIRST_ARGUMENT + 14)
    K, V, k_head, v_head, panels, G, D, Dv = given[FIRST_ARGUMENT : FIRST_ARGUMENT + 8]
    keys, key_head, key_token, values, value_head, value_token = given[FIRST_ARGUMENT + 8 :]
    while True:
        task = next_task(arguments)
        if task >= given[NUM_TASKS]:
            break
        g = task % G
        token, count, start, before = _panel(panels, task // G)
        for i in range(count):
            position, row = start + before + i, token + i
            copy(K + g * k_head + position * D * BYTES, keys + g * key_head + row * key_token, D)
            copy(V + g * v_head + position * Dv * BYTES, values + g * value_head + row * value_token, Dv)


PREFILL, STORE_PANELS = kernel(_prefill), kernel(_store_panels)
