"""A kernel that runs other kernels one after the other, so that a whole step of the model is one call from Python."""

from __future__ import annotations

from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from gradellm_engine.cpu_kernels.jit import INT64, integer, kernel, set_integer
from gradellm_engine.cpu_kernels.team import COUNTER, FIRST_ARGUMENT


@intrinsic
def _call_kernel(typing_context, address, integers):
    """Call the kernel at an address with the address of its integers."""

    def generate(context, builder, signature, arguments):
        function_type = ir.FunctionType(ir.VoidType(), [INT64.as_pointer()])
        function = builder.inttoptr(arguments[0], function_type.as_pointer())
        builder.call(function, [builder.inttoptr(arguments[1], INT64.as_pointer())])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _call(typing_context, address):
    """Call the function without arguments at an address."""

    def generate(context, builder, signature, arguments):
        function_type = ir.FunctionType(ir.VoidType(), [])
        builder.call(builder.inttoptr(arguments[0], function_type.as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.int64), generate


def _sequence(arguments):
    """Every thread of the team runs all launches: pairs of a kernel's address and that of its integers."""
    pairs, count, barrier = carray(arguments, FIRST_ARGUMENT + 3)[FIRST_ARGUMENT:]
    for i in range(count):
        integers = integer(pairs + 16 * i + 8)
        _call_kernel(integer(pairs + 16 * i), integers)
        if barrier != 0:
            _call(barrier)
        # All tasks are taken and done; every thread writes the same, for the next time.
        set_integer(integers + 8 * COUNTER, 0)


SEQUENCE = kernel(_sequence)
