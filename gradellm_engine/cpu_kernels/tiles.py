"""The innermost loops of matrix products and attention, in LLVM's intermediate representation.

LLVM finds no use of registers as good as these by itself. A tile is up to MAX_ROWS rows of PANEL numbers each, which
stay in registers while a sum runs over `depth` inputs: for each input, a line of PANEL weights is loaded once, and each
row adds one number of x times the line. Everything is addressed in bytes, so that x may be a matrix or its transpose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gradellm_engine.cpu_kernels.jit import FLOAT, INT32, INT64, exp_of, vector_function

_FEATURES = binding.get_host_cpu_features()
HAS_AVX512 = bool(_FEATURES.get("avx512f"))
HAS_BFLOAT16 = HAS_AVX512 and bool(_FEATURES.get("avx512bf16"))
"""Whether the processor multiplies bfloat16 numbers."""

# Registers bound the tile: 16 of 8 numbers (AVX2), 32 of 16 (AVX-512), 32 of 4 (Neon).
PANEL = 32 if HAS_AVX512 else 16
MAX_ROWS = 12 if HAS_AVX512 else 6
BYTES = 4  # of a number
LINE = PANEL * BYTES  # of the weights of one input, or of a pair of bfloat16 inputs

LANES = PANEL // 2  # of a register

_VECTOR, _INTEGERS = ir.VectorType(FLOAT, PANEL), ir.VectorType(INT32, PANEL)
_BYTE = ir.IntType(8).as_pointer()
_FIRST = ir.Constant(INT32, 0)
_TILE = types.void(*[types.int64] * 13)

AddLine = Callable[[Any, Any, Any, Any], Any]  # builder, sums of a row, number or pair of x, line -> new sums


@intrinsic
def add_tile(
    typing_context, rows, w, x, start, y, depth, w_step, x_stride, x_step, start_stride, y_stride, fetched, step
):
    """y[m] = start[m] + sum_k x[m, k] w[k], of 1 to MAX_ROWS rows m, over `depth` inputs k, in float32.

    w, x, start and y are addresses; w[k], PANEL numbers, is at w + k w_step, x[m, k] at x + m x_stride + k x_step, rows
    of start and y are their strides apart, in bytes. From `fetched` on, memory is fetched into the cache, `step` bytes
    for each input.
    """
    return _TILE, lambda context, builder, signature, arguments: _tiles(context, builder, arguments, _add_numbers)


@intrinsic
def add_pair_tile(
    typing_context, rows, w, x, start, y, depth, w_step, x_stride, x_step, start_stride, y_stride, fetched, step
):
    """`add_tile` of bfloat16 x and w, with float32 sums: k numbers pairs of inputs, and w[k] is PANEL pairs."""
    return _TILE, lambda context, builder, signature, arguments: _tiles(context, builder, arguments, _add_pairs)


@intrinsic
def add_widened_tile(
    typing_context, rows, w, x, start, y, depth, w_step, x_stride, x_step, start_stride, y_stride, fetched, step
):
    """`add_pair_tile` of float32 x, for processors that do not multiply bfloat16: a pair of x is two numbers."""
    return _TILE, lambda context, builder, signature, arguments: _tiles(context, builder, arguments, _add_widened)


def _tiles(context: Any, builder: Any, arguments: Any, add_line: AddLine) -> Any:
    """A tile for each number of rows."""
    num_rows, *rest = arguments
    return _for_each_number_of_rows(context, builder, num_rows, lambda rows: _tile(builder, rows, add_line, *rest))


def _for_each_number_of_rows(context: Any, builder: Any, num_rows: Any, generate: Callable[[int], None]) -> Any:
    """Code for each number of rows from 1 to MAX_ROWS, of which one is run."""
    end = builder.append_basic_block("end")
    switch = builder.switch(num_rows, end)
    for count in range(1, MAX_ROWS + 1):
        block = builder.append_basic_block(f"rows_{count}")
        switch.add_case(ir.Constant(INT64, count), block)
        builder.position_at_end(block)
        generate(count)
        builder.branch(end)
    builder.position_at_end(end)
    return context.get_dummy_value()


def _tile(
    builder, rows, add_line, w, x, start, y, depth, w_step, x_stride, x_step, start_stride, y_stride, fetched, step
):
    prefetch_type = ir.FunctionType(ir.VoidType(), [_BYTE, INT32, INT32, INT32])
    prefetch = cgutils.get_or_insert_function(builder.module, prefetch_type, "llvm.prefetch.p0")
    locality = [ir.Constant(INT32, 0), ir.Constant(INT32, 3), ir.Constant(INT32, 1)]  # to be read, kept in all levels
    x_rows = [_row(builder, x, x_stride, m) for m in range(rows)]

    def add(k: Any, sums: Sequence[Any]) -> list[Any]:
        builder.call(prefetch, [builder.inttoptr(builder.add(fetched, builder.mul(k, step)), _BYTE), *locality])
        weights = _load(builder, builder.add(w, builder.mul(k, w_step)), _INTEGERS)
        offset = builder.mul(k, x_step)
        return [add_line(builder, s, builder.add(row, offset), weights) for s, row in zip(sums, x_rows, strict=True)]

    sums = _loop(builder, f"tile_{rows}", ir.Constant(INT64, 0), depth, add, [ir.Constant(_VECTOR, None)] * rows)
    for m, sum_ in enumerate(sums):
        # A block's sum starts at zero, so that rounding errors grow with the block and not with all inputs.
        first = _load(builder, _row(builder, start, start_stride, m), _VECTOR)
        _store(builder, builder.fadd(first, sum_), _row(builder, y, y_stride, m))


def _add_numbers(builder: Any, sums: Any, x: Any, line: Any) -> Any:
    number = _everywhere(builder, _load(builder, x, FLOAT))
    fma = vector_function(builder, "llvm.fma", PANEL, 3)
    return builder.call(fma, [number, builder.bitcast(line, _VECTOR), sums])


def _add_widened(builder: Any, sums: Any, x: Any, line: Any) -> Any:
    """A bfloat16 number is the upper half of a float32 number; the first of a pair is in the lower half of 32 bits."""
    fma = vector_function(builder, "llvm.fma", PANEL, 3)
    first = builder.shl(line, _integers(16))
    second = builder.and_(line, _integers(0xFFFF0000))
    for place, half in enumerate((first, second)):
        address = builder.add(x, ir.Constant(INT64, BYTES * place))
        number = _everywhere(builder, _load(builder, address, FLOAT))
        sums = builder.call(fma, [number, builder.bitcast(half, _VECTOR), sums])
    return sums


class _BFloat16(ir.Type):
    """LLVM's bfloat, which llvmlite has no class for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat16)

    def __hash__(self) -> int:
        return hash(_BFloat16)


_SUMS, _PAIRS = ir.VectorType(FLOAT, LANES), ir.VectorType(_BFloat16(), 2 * LANES)


def _add_pairs(builder: Any, sums: Any, x: Any, line: Any) -> Any:
    dot_type = ir.FunctionType(_SUMS, [_SUMS, _PAIRS, _PAIRS])
    dot = cgutils.get_or_insert_function(builder.module, dot_type, "llvm.x86.avx512bf16.dpbf16ps.512")
    pair = _everywhere(builder, _load(builder, x, INT32))
    parts = []
    for first in range(0, PANEL, LANES):
        lanes = ir.Constant(ir.VectorType(INT32, LANES), list(range(first, first + LANES)))
        part, pairs, weights = (
            builder.shuffle_vector(whole, ir.Constant(whole.type, ir.Undefined), lanes) for whole in (sums, pair, line)
        )
        parts.append(builder.call(dot, [part, builder.bitcast(pairs, _PAIRS), builder.bitcast(weights, _PAIRS)]))
    return builder.shuffle_vector(*parts, ir.Constant(_INTEGERS, list(range(PANEL))))


@intrinsic
def multiply_rows(typing_context, rows, q, q_stride, keys, key_stride, width, factor, products, product_stride, count):
    """products[m, j] = factor sum_d q[m, d] keys[j, d], of 1 to MAX_ROWS rows m and `count` keys j.

    `width` is a multiple of LANES; q, keys and products are addresses, strides those of rows in bytes.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        num_rows, *rest = arguments
        return _for_each_number_of_rows(context, builder, num_rows, lambda r: _multiply_rows(builder, r, *rest))

    signature = types.void(*[types.int64] * 6, types.float32, *[types.int64] * 3)
    return signature, generate


def _multiply_rows(builder, rows, q, q_stride, keys, key_stride, width, factor, products, product_stride, count):
    vector, bytes_ = ir.VectorType(FLOAT, LANES), ir.Constant(INT64, BYTES)
    fma = vector_function(builder, "llvm.fma", LANES, 3)
    sum_type = ir.FunctionType(FLOAT, [FLOAT, vector])
    total = cgutils.get_or_insert_function(builder.module, sum_type, f"llvm.vector.reduce.fadd.v{LANES}f32")
    zero, q_rows = ir.Constant(INT64, 0), [_row(builder, q, q_stride, m) for m in range(rows)]

    def multiply_key(j: Any, _: Sequence[Any]) -> list[Any]:
        key = builder.add(keys, builder.mul(j, key_stride))

        def multiply_part(part: Any, sums: Sequence[Any]) -> list[Any]:
            offset = builder.mul(part, ir.Constant(INT64, LANES * BYTES))
            numbers = _load(builder, builder.add(key, offset), vector)
            parts_of_q = [_load(builder, builder.add(row, offset), vector) for row in q_rows]
            return [builder.call(fma, [part, numbers, s]) for part, s in zip(parts_of_q, sums, strict=True)]

        parts = builder.udiv(width, ir.Constant(INT64, LANES))
        sums = _loop(builder, f"parts_{rows}", zero, parts, multiply_part, [ir.Constant(vector, None)] * rows)
        for m, lanes in enumerate(sums):
            number = builder.call(total, [ir.Constant(FLOAT, -0.0), lanes], fastmath=("reassoc",))
            address = builder.add(_row(builder, products, product_stride, m), builder.mul(j, bytes_))
            _store(builder, builder.fmul(number, factor), address)
        return []

    _loop(builder, f"keys_{rows}", zero, count, multiply_key, [])


@intrinsic
def round_numbers(typing_context, x, y, count):
    """Write `count` float32 numbers from x to y in bfloat16, rounded to nearest. Addresses."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, y, count = arguments
        vectors = builder.udiv(count, ir.Constant(INT64, PANEL))
        done = builder.mul(vectors, ir.Constant(INT64, PANEL))
        _round(builder, "vectors", x, y, ir.Constant(INT64, 0), vectors, _VECTOR, ir.VectorType(_BFloat16(), PANEL))
        _round(builder, "numbers", x, y, done, count, FLOAT, _BFloat16())
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


def _round(builder, name, x, y, first, end, source, target):
    """Round numbers or vectors first..end of x."""
    width = source.count if isinstance(source, ir.VectorType) else 1

    def round_one(i: Any, _: Sequence[Any]) -> list[Any]:
        numbers = _load(builder, builder.add(x, builder.mul(i, ir.Constant(INT64, width * BYTES))), source)
        address = builder.add(y, builder.mul(i, ir.Constant(INT64, width * BYTES // 2)))
        builder.store(builder.fptrunc(numbers, target), builder.inttoptr(address, target.as_pointer()), align=2)
        return []

    _loop(builder, name, first, end, round_one, [])


def _loop(
    builder: Any,
    name: str,
    first: Any,
    end: Any,
    update: Callable[[Any, Sequence[Any]], Sequence[Any]],
    initial: Sequence[Any],
) -> list[Any]:
    """A loop in which i goes from first to end: values = update(i, values), from initial ones on."""
    before = builder.block
    head, body, after = (builder.append_basic_block(f"{name}_{part}") for part in ("head", "body", "end"))
    builder.branch(head)
    builder.position_at_end(head)
    i, values = builder.phi(INT64), [builder.phi(value.type) for value in initial]
    builder.cbranch(builder.icmp_signed("<", i, end), body, after)
    builder.position_at_end(body)
    updated = [builder.add(i, ir.Constant(INT64, 1)), *update(i, values)]
    for phi, begin, following in zip([i, *values], [first, *initial], updated, strict=True):
        phi.add_incoming(begin, before)
        phi.add_incoming(following, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return values


@intrinsic
def highest_number(typing_context, x, count):
    """The largest of `count` float32 numbers at the address x, a multiple of PANEL; NaN are left out."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, count = arguments
        maximum = vector_function(builder, "llvm.maxnum", PANEL, 2)
        of_lanes = ir.FunctionType(FLOAT, [_VECTOR])
        reduce = cgutils.get_or_insert_function(builder.module, of_lanes, f"llvm.vector.reduce.fmax.v{PANEL}f32")

        def update(i: Any, highest: Sequence[Any]) -> list[Any]:
            address = builder.add(x, builder.mul(i, ir.Constant(INT64, LINE)))
            return [builder.call(maximum, [highest[0], _load(builder, address, _VECTOR)])]

        lowest = ir.Constant(_VECTOR, [float("-inf")] * PANEL)
        lines = builder.udiv(count, ir.Constant(INT64, PANEL))
        return builder.call(reduce, _loop(builder, "highest", ir.Constant(INT64, 0), lines, update, [lowest]))

    return types.float32(types.int64, types.int64), generate


@intrinsic
def softmax_columns(typing_context, scores, count, scaling, first_key, first_query, window, totals):
    """Turn PANEL queries' products with `count` keys into weights, before they are divided by their sum. [keys, PANEL]

    A query at position p sees the keys from p - window + 1 to p; the first row is that of the key at `first_key`, the
    first column that of the query at `first_query`. `scores` is their address, `totals` that of the sums. [PANEL]
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores, count, scaling, first_key, first_query, window, totals = arguments
        scales = _everywhere(builder, scaling)
        lanes = ir.Constant(_INTEGERS, list(range(PANEL)))
        queries = builder.add(_everywhere(builder, builder.trunc(first_query, INT32)), lanes)
        oldest = builder.sub(queries, _everywhere(builder, builder.trunc(window, INT32)))
        maximum = vector_function(builder, "llvm.maxnum", PANEL, 2)
        lowest = ir.Constant(_VECTOR, [float("-inf")] * PANEL)

        def masked(row: Any, highest: Sequence[Any]) -> list[Any]:
            key = _everywhere(builder, builder.trunc(builder.add(first_key, row), INT32))
            seen = builder.and_(builder.icmp_signed("<=", key, queries), builder.icmp_signed(">", key, oldest))
            address = builder.add(scores, builder.mul(row, ir.Constant(INT64, LINE)))
            score = builder.select(seen, builder.fmul(_load(builder, address, _VECTOR), scales), lowest)
            _store(builder, score, address)
            return [builder.call(maximum, [highest[0], score])]

        (highest,) = _loop(builder, "highest", ir.Constant(INT64, 0), count, masked, [lowest])

        def weighed(row: Any, total: Sequence[Any]) -> list[Any]:
            address = builder.add(scores, builder.mul(row, ir.Constant(INT64, LINE)))
            weight = exp_of(builder, builder.fsub(_load(builder, address, _VECTOR), highest))
            _store(builder, weight, address)
            return [builder.fadd(total[0], weight)]

        (total,) = _loop(builder, "total", ir.Constant(INT64, 0), count, weighed, [ir.Constant(_VECTOR, None)])
        _store(builder, total, totals)
        return context.get_dummy_value()

    signature = types.void(types.int64, types.int64, types.float32, types.int64, types.int64, types.int64, types.int64)
    return signature, generate


def _row(builder: Any, address: Any, stride: Any, m: int) -> Any:
    return builder.add(address, builder.mul(stride, ir.Constant(INT64, m)))


def _load(builder: Any, address: Any, kind: ir.Type) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=BYTES)


def _store(builder: Any, vector: Any, address: Any) -> None:
    builder.store(vector, builder.inttoptr(address, vector.type.as_pointer()), align=BYTES)


def _everywhere(builder: Any, number: Any) -> Any:
    """A vector of PANEL times a number."""
    undefined = ir.Constant(ir.VectorType(number.type, PANEL), ir.Undefined)
    first = builder.insert_element(undefined, number, _FIRST)
    return builder.shuffle_vector(first, undefined, ir.Constant(_INTEGERS, [0] * PANEL))


def _integers(value: int) -> ir.Constant:
    return ir.Constant(_INTEGERS, [value] * PANEL)
