"""How kernels are compiled, and the operations that Numba's Python lacks.

Kernels address memory by integers, as they get it from torch. Compiled code is kept on disk where Numba finds a folder
that it can write to, and compiled anew in each process where it does not.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

INT64, INT32, FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()

_OPTIONS = {"nopython": True, "nogil": True, "error_model": "numpy"}
_KERNEL = types.void(types.CPointer(types.int64))


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator for functions that kernels call; `options` are those of `numba.jit`."""
    return lambda function: numba.jit(**_OPTIONS, **options)(function)


def kernel(function: Callable[[Any], None]) -> int:
    """Compile a kernel: a function of a pointer to integers; see `gradellm_engine.cpu_kernels.team`. Its address."""
    try:
        compiled_kernel = numba.cfunc(_KERNEL, cache=True, **_OPTIONS)(function)
    except RuntimeError:  # there is no folder for the cache
        compiled_kernel = numba.cfunc(_KERNEL, **_OPTIONS)(function)
    _alive.append(compiled_kernel)
    address: int = compiled_kernel.address
    return address


_alive: list[Any] = []


@intrinsic
def next_task(typing_context, counter):
    """Take the next number of a counter that threads share; `counter` points to it."""

    def generate(context, builder, signature, arguments):
        return builder.atomic_rmw("add", arguments[0], ir.Constant(INT64, 1), "monotonic")

    return types.int64(types.CPointer(types.int64)), generate


@intrinsic
def floats(typing_context, address):
    """The pointer to float32 numbers at an address, for `numba.carray`."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], FLOAT.as_pointer())

    return types.CPointer(types.float32)(types.int64), generate


@intrinsic
def integer(typing_context, address):
    """The int64 number at an address."""

    def generate(context, builder, signature, arguments):
        return builder.load(builder.inttoptr(arguments[0], INT64.as_pointer()))

    return types.int64(types.int64), generate


@intrinsic
def set_integer(typing_context, address, number):
    """Write an int64 number to an address."""

    def generate(context, builder, signature, arguments):
        builder.store(arguments[1], builder.inttoptr(arguments[0], INT64.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@compiled()
def copy(target, source, width):
    """Copy float32 numbers between addresses."""
    y, x = numba.carray(floats(target), width), numba.carray(floats(source), width)
    for i in range(width):
        y[i] = x[i]


@intrinsic
def as_float(typing_context, number):
    """The float64 of the same bits as an integer."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), generate


def vector_function(builder: Any, name: str, width: int, num_arguments: int) -> Any:
    """LLVM's function `name` of vectors of float32 numbers, such as llvm.fma."""
    vector = ir.VectorType(FLOAT, width)
    signature = ir.FunctionType(vector, [vector] * num_arguments)
    return cgutils.get_or_insert_function(builder.module, signature, f"{name}.v{width}f32")


@intrinsic
def exp(typing_context, number):
    """e^x of a float32 number; see `exp_of`."""
    return types.float32(types.float32), lambda context, builder, signature, arguments: exp_of(builder, arguments[0])


def exp_of(builder: Any, x: Any) -> Any:
    """e^x of a float32 number or of a vector, to two units in the last place, as operations that LLVM can vectorise.

    2^n e^r with n the integer nearest to x / ln 2, and e^r by Taylor's series, whose next term is below 1e-8 for
    |r| <= ln(2) / 2. Below -87 it is e^-87, which softmax and SiLU cannot tell from 0; from 88.4 on it is infinite.
    """
    width = x.type.count if isinstance(x.type, ir.VectorType) else None
    integers = INT32 if width is None else ir.VectorType(INT32, width)

    def constant(value: float, kind: Any = x.type) -> Any:
        return ir.Constant(kind, value if width is None else [value] * width)

    def function(name: str, num_arguments: int) -> Any:
        if width is not None:
            return vector_function(builder, name, width, num_arguments)
        signature = ir.FunctionType(FLOAT, [FLOAT] * num_arguments)
        return cgutils.get_or_insert_function(builder.module, signature, f"{name}.f32")

    floor, fma = function("llvm.floor", 1), function("llvm.fma", 3)
    for comparison, limit in (("<", -87.0), (">", 89.0)):  # false for NaN, which stays
        x = builder.select(builder.fcmp_ordered(comparison, x, constant(limit)), constant(limit), x)
    n = builder.call(floor, [builder.call(fma, [x, constant(_float32(1 / math.log(2))), constant(0.5)])])
    r = builder.call(fma, [n, constant(-_LN2_HIGH), x])
    r = builder.call(fma, [n, constant(-_LN2_LOW), r])
    power = constant(_float32(1 / 5040))
    for order in (720, 120, 24, 6, 2, 1, 1):
        power = builder.call(fma, [power, r, constant(_float32(1 / order))])
    exponent = builder.add(builder.fptosi(n, integers), constant(127, integers))
    return builder.fmul(power, builder.bitcast(builder.shl(exponent, constant(23, integers)), x.type))


def _float32(number: float) -> float:
    """The nearest float32 number, which an LLVM constant must be."""
    rounded: float = struct.unpack("f", struct.pack("f", number))[0]
    return rounded


_LN2_HIGH = 0.693359375  # few bits, so that its products with small integers are exact
_LN2_LOW = _float32(math.log(2) - _LN2_HIGH)
