"""Triton kernels for attention of a few new tokens of each sequence, launched by `gradellm_engine.attention.fused`.

A program takes one sequence b, one key-value head g, a tile of tokens and a split of the keys. Its rows are the tokens'
query heads that share the key-value head: row m is head m % R of token m // R, where R is r rounded up to a power of
two. A second, small kernel merges the splits (split-K).

Where the sink is excluded, each sequence's first token is a split by itself, after the others: merging all splits gives
the output, and merging the others what the sources alone would give. No digits are lost by subtracting it.

Products are of the stored numbers, accumulated in float32. Attention weights and their gradients are float32, and enter
a product as two numbers of the model's dtype, the second the rounding error of the first: 16 bits of mantissa instead
of bfloat16's 8.
"""

import math

import triton
import triton.language as tl

# Those of `gradellm_engine.attention.ops`, the first two of `InputGradient`.
NOTHING, ALL = tl.constexpr(0), tl.constexpr(2)
LOG_MIN_SOURCE_WEIGHT = tl.constexpr(math.log(1e-12))


@triton.jit
def _weigh(weights, stored, EXACT: tl.constexpr):
    """Product of float32 numbers with numbers of the model's dtype. [M, N], [N, D] -> [M, D]"""
    if EXACT:
        return tl.dot(weights, stored, input_precision="ieee")
    first = weights.to(stored.dtype)
    rest = (weights - first.to(tl.float32)).to(stored.dtype)
    return tl.dot(first, stored) + tl.dot(rest, stored)


@triton.jit
def _split(length, first, BLOCK: tl.constexpr):
    """The first and the end of the program's split of the positions first..length."""
    blocks = tl.cdiv(tl.cdiv(length - first, BLOCK), tl.num_programs(2)) * BLOCK
    low = first + tl.program_id(2) * blocks
    return low, tl.minimum(low + blocks, length)


@triton.jit
def _load_stored(pointer, slots, is_key, columns, WIDTH: tl.constexpr):
    """Keys or values of one head at some positions in the pool; 0 past the end. [N], [D2] -> [N, D2]"""
    mask = is_key[:, None] & (columns < WIDTH)[None, :]
    return tl.load(pointer + slots[:, None] * WIDTH + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _store_maps(
    maps, map_offsets, is_kept, map_size, s, u, a, mean, seen,
    KIND: tl.constexpr, TOKENS: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store the maps of `MapKind` KIND, summed over the query heads of each token. [TOKENS R, BLOCK] each"""
    if KIND == 1:
        kept = tl.where(seen, s, 0.0)
    elif KIND == 4 or KIND == 6:
        kept = a * (u - mean[:, None])
    else:
        kept = a * u
    if KIND == 3 or KIND == 4:
        kept = tl.abs(kept)
    elif KIND >= 5:
        kept = tl.where(kept < 0, 0.0, kept)  # NaN stays
    tl.store(maps + map_offsets, tl.sum(tl.reshape(kept, (TOKENS, R, BLOCK)), 1), mask=is_kept)
    if KIND == 1:
        effects = tl.sum(tl.reshape(tl.where(seen, u, 0.0), (TOKENS, R, BLOCK)), 1)
        tl.store(maps + map_size + map_offsets, effects, mask=is_kept)


@triton.jit
def _load_rows(pointer, token, head, token_stride, head_stride, is_row, columns, WIDTH: tl.constexpr):
    """Numbers of some heads of some tokens. [M], [D2] -> [M, D2]"""
    mask = is_row[:, None] & (columns < WIDTH)[None, :]
    return tl.load(
        pointer + head[:, None] * head_stride + token[:, None] * token_stride + columns[None, :], mask=mask, other=0.0
    )


@triton.jit
def _log_sources(log_source_totals, flat, is_row, log_total):
    """The logarithm of the sources' sum of weights; infinite, so that all are 0, where it is almost nothing."""
    log_sources = tl.load(log_source_totals + flat, mask=is_row, other=0.0)
    return tl.where(log_sources - log_total >= LOG_MIN_SOURCE_WEIGHT, log_sources, float("inf"))


@triton.jit
def forward_kernel(
    Q, K, V, starts, lengths, partials, highest, totals,
    q_head, q_token, k_head, v_head, BT, H, T, window, scaling,
    EXCLUDES: tl.constexpr, G: tl.constexpr, r: tl.constexpr, R: tl.constexpr, TOKENS: tl.constexpr, D: tl.constexpr,
    DV: tl.constexpr, D2: tl.constexpr, DV2: tl.constexpr, BLOCK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    b, g, split = tl.program_id(0) // G, tl.program_id(0) % G, tl.program_id(2)
    rows = tl.arange(0, TOKENS * R)
    t, head = tl.program_id(1) * TOKENS + rows // R, rows % R
    is_row = (t < T) & (head < r)
    d, dv = tl.arange(0, D2), tl.arange(0, DV2)
    start, length = tl.load(starts + b), tl.load(lengths + b)
    own = length - T + t  # positions of the queries
    flat = (b * T + t) * H + g * r + head
    q = _load_rows(Q, b * T + t, g * r + head, q_token, q_head, is_row, d, D)
    m = tl.full((TOKENS * R,), float("-inf"), tl.float32)
    total = tl.zeros((TOKENS * R,), tl.float32)
    acc = tl.zeros((TOKENS * R, DV2), tl.float32)
    first = tl.maximum(0, length - T - window + 1)
    if EXCLUDES:
        first = tl.maximum(first, 1)
    low, high = _split(length, first, BLOCK)
    for n in range(low, high, BLOCK):
        position = n + tl.arange(0, BLOCK)
        is_key = position < high
        slots = (start + position).to(tl.int64)
        k = _load_stored(K + g * k_head, slots, is_key, d, D)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scaling
        seen = is_key[None, :] & (position[None, :] <= own[:, None]) & (position[None, :] > own[:, None] - window)
        s = tl.where(seen, s, float("-inf"))
        m_next = tl.maximum(m, tl.max(s, 1))
        base = tl.where(m_next == float("-inf"), 0.0, m_next)
        p = tl.exp(s - base[:, None])
        shrunk = tl.exp(m - base)
        total = total * shrunk + tl.sum(p, 1)
        v = _load_stored(V + g * v_head, slots, is_key, dv, DV)
        acc = acc * shrunk[:, None] + _weigh(p, v, EXACT)
        m = m_next
    row_index = split * BT * H + flat
    tl.store(partials + row_index[:, None] * DV + dv[None, :], acc, mask=is_row[:, None] & (dv < DV)[None, :])
    tl.store(highest + row_index, m, mask=is_row)
    tl.store(totals + row_index, total, mask=is_row)
    if EXCLUDES:  # noqa: SIM102 (a constant decides whether the rest is compiled, a number whether it runs)
        if split == 0:
            last = tl.num_programs(2) * BT * H + flat  # the first token's own split
            is_seen = own - window < 0
            first_k = tl.load(K + g * k_head + start.to(tl.int64) * D + d, mask=d < D, other=0.0)
            first_v = tl.load(V + g * v_head + start.to(tl.int64) * DV + dv, mask=dv < DV, other=0.0)
            first_s = tl.sum(q.to(tl.float32) * first_k.to(tl.float32)[None, :], 1) * scaling
            first_o = tl.where(is_seen[:, None], first_v.to(tl.float32)[None, :], 0.0)
            tl.store(partials + last[:, None] * DV + dv[None, :], first_o, mask=is_row[:, None] & (dv < DV)[None, :])
            tl.store(highest + last, tl.where(is_seen, first_s, float("-inf")), mask=is_row)
            tl.store(totals + last, tl.where(is_seen, 1.0, 0.0), mask=is_row)


@triton.jit
def _merge(
    partials, highest, totals, row, count, S: tl.constexpr, S2: tl.constexpr, DV: tl.constexpr, DV2: tl.constexpr
):
    """The output of the first S splits of one head of one token, and the logarithm of the weights' sum."""
    s, dv = tl.arange(0, S2), tl.arange(0, DV2)
    m = tl.load(highest + s * count + row, mask=s < S, other=float("-inf"))
    top = tl.max(m, 0)
    factor = tl.exp(m - tl.where(top == float("-inf"), 0.0, top))
    total = tl.sum(tl.load(totals + s * count + row, mask=s < S, other=0.0) * factor, 0)
    partial = tl.load(
        partials + (s * count + row)[:, None] * DV + dv[None, :], mask=(s < S)[:, None] & (dv < DV)[None, :], other=0.0
    )
    o = tl.sum(partial * factor[:, None], 0) / tl.where(total == 0, 1.0, total)
    return o, top + tl.log(tl.where(total == 0, 1.0, total))


@triton.jit
def join_forward_kernel(
    partials, highest, totals, output, exact, log_totals, source_output, log_source_totals, count,
    EXCLUDES: tl.constexpr, S: tl.constexpr, S2: tl.constexpr, DV: tl.constexpr, DV2: tl.constexpr,
):  # fmt: skip
    """Merge the splits: the output in both dtypes, and the logarithm of the weights' sum; those of sources, too."""
    row = tl.program_id(0)
    dv = tl.arange(0, DV2)
    if EXCLUDES:
        of_sources, log_sources = _merge(partials, highest, totals, row, count, S - 1, S2, DV, DV2)
        tl.store(source_output + row * DV + dv, of_sources, mask=dv < DV)
        tl.store(log_source_totals + row, log_sources)
    o, log_total = _merge(partials, highest, totals, row, count, S, S2, DV, DV2)
    tl.store(exact + row * DV + dv, o, mask=dv < DV)
    tl.store(output + row * DV + dv, o.to(output.dtype.element_ty), mask=dv < DV)
    tl.store(log_totals + row, log_total)


@triton.jit
def backward_kernel(
    Q, K, V, starts, lengths, W, exact, log_totals, source_output, log_source_totals, maps, dq_partials, own_weights,
    q_head, q_token, k_head, v_head, w_token, w_head, BT, H, T, width, map_size, window, scaling,
    KIND: tl.constexpr, EXCLUDES: tl.constexpr, NEEDS: tl.constexpr,
    G: tl.constexpr, r: tl.constexpr, R: tl.constexpr, TOKENS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    D2: tl.constexpr, DV2: tl.constexpr, BLOCK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    b, g, split = tl.program_id(0) // G, tl.program_id(0) % G, tl.program_id(2)
    rows = tl.arange(0, TOKENS * R)
    t, head = tl.program_id(1) * TOKENS + rows // R, rows % R
    is_row = (t < T) & (head < r)
    tokens, d, dv = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS), tl.arange(0, D2), tl.arange(0, DV2)
    start, length = tl.load(starts + b), tl.load(lengths + b)
    own = length - T + t
    flat = (b * T + t) * H + g * r + head
    q = _load_rows(Q, b * T + t, g * r + head, q_token, q_head, is_row, d, D)
    w = _load_rows(W, b * T + t, g * r + head, w_token, w_head, is_row, dv, DV)
    o = _load_rows(exact, flat, head, DV, 0, is_row, dv, DV)
    log_total = tl.load(log_totals + flat, mask=is_row, other=0.0)
    mean = tl.sum(w.to(tl.float32) * o, 1)  # w . o = sum_j a_j u_j
    source_mean, log_sources = mean, log_total
    if EXCLUDES:
        of_sources = _load_rows(source_output, flat, head, DV, 0, is_row, dv, DV)
        source_mean = tl.sum(w.to(tl.float32) * of_sources, 1)
        log_sources = _log_sources(log_source_totals, flat, is_row, log_total)
    dq = tl.zeros((TOKENS * R, D2), tl.float32)
    own_a, own_ds = tl.zeros((TOKENS * R,), tl.float32), tl.zeros((TOKENS * R,), tl.float32)
    low, high = _split(length, tl.maximum(0, length - T - window + 1), BLOCK)
    for n in range(low, high, BLOCK):
        position = n + tl.arange(0, BLOCK)
        is_key = position < high
        slots = (start + position).to(tl.int64)
        k = _load_stored(K + g * k_head, slots, is_key, d, D)
        v = _load_stored(V + g * v_head, slots, is_key, dv, DV)
        seen = is_key[None, :] & (position[None, :] <= own[:, None]) & (position[None, :] > own[:, None] - window)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scaling
        u = tl.dot(w, tl.trans(v), input_precision="ieee")
        a = tl.where(seen & is_row[:, None], tl.exp(s - log_total[:, None]), 0.0)
        is_own = position[None, :] == own[:, None]
        if NEEDS != NOTHING:
            own_a += tl.sum(tl.where(is_own, a, 0.0), 1)
        if NEEDS == ALL:
            ds = a * (u - mean[:, None]) * scaling
            dq += _weigh(ds, k, EXACT)
            own_ds += tl.sum(tl.where(is_own, ds, 0.0), 1)
        if KIND != 0:
            map_offsets = ((b * G + g) * T + tokens)[:, None] * width + (width - length + position)[None, :]
            is_kept = (tokens < T)[:, None] & is_key[None, :] & (position >= length - width)[None, :]
            weights = a
            if EXCLUDES:
                is_source = seen & is_row[:, None] & (position > 0)[None, :]
                weights = tl.where(is_source, tl.exp(s - log_sources[:, None]), 0.0)
            _store_maps(maps, map_offsets, is_kept, map_size, s, u, weights, source_mean, seen, KIND, TOKENS, R, BLOCK)
    is_here = is_row & (own >= low) & (own < high)
    if NEEDS != NOTHING:
        tl.store(own_weights + flat, own_a, mask=is_here)
    if NEEDS == ALL:
        row_index = split * BT * H + flat
        tl.store(dq_partials + row_index[:, None] * D + d[None, :], dq, mask=is_row[:, None] & (d < D)[None, :])
        tl.store(own_weights + BT * H + flat, own_ds, mask=is_here)


@triton.jit
def join_backward_kernel(
    Q, W, own_weights, dq_partials, dq, dk, dv, q_head, q_token, w_token, w_head, BT, H,
    r: tl.constexpr, R: tl.constexpr, S: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, D2: tl.constexpr,
    DV2: tl.constexpr, NEEDS: tl.constexpr,
):  # fmt: skip
    """Merge the splits of one token and one key-value head: dq, and the gradients of the token's own key and value."""
    row, g = tl.program_id(0), tl.program_id(1)
    head, d, e = tl.arange(0, R), tl.arange(0, D2), tl.arange(0, DV2)
    is_head = head < r
    is_key, is_value = is_head[:, None] & (d < D)[None, :], is_head[:, None] & (e < DV)[None, :]
    flat = row * H + g * r + head
    if NEEDS == ALL:
        total = tl.zeros((R, D2), tl.float32)
        for split in range(S):
            total += tl.load(dq_partials + (split * BT * H + flat)[:, None] * D + d[None, :], mask=is_key, other=0.0)
        tl.store(dq + ((g * r + head) * BT + row)[:, None] * D + d[None, :], total.to(dq.dtype.element_ty), mask=is_key)
        q = tl.load(Q + (g * r + head)[:, None] * q_head + row * q_token + d[None, :], mask=is_key, other=0.0)
        ds = tl.load(own_weights + BT * H + flat, mask=is_head, other=0.0)
        own_dk = tl.sum(q.to(tl.float32) * ds[:, None], 0)
        tl.store(dk + (g * BT + row) * D + d, own_dk.to(dk.dtype.element_ty), mask=d < D)
    w = tl.load(W + row * w_token + (g * r + head)[:, None] * w_head + e[None, :], mask=is_value, other=0.0)
    a = tl.load(own_weights + flat, mask=is_head, other=0.0)
    own_dv = tl.sum(w.to(tl.float32) * a[:, None], 0)
    tl.store(dv + (g * BT + row) * DV + e, own_dv.to(dv.dtype.element_ty), mask=e < DV)
