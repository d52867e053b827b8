"""Runs compiled kernels on torch's own OpenMP threads.

A second thread pool beside torch's would fight with it for the same cores: idle OpenMP threads spin for a while before
they sleep. So kernels are called through the OpenMP runtime that libtorch is linked with, on the team that computes
torch's operators, too.

A kernel is a C function of one pointer, to 64-bit integers: a counter, the number of tasks, and the kernel's arguments.
Every thread of the team calls it, and takes tasks by the counter until none is left, so that a thread which another
process delays holds up no more than its last task.
"""

from __future__ import annotations

import ctypes
import importlib.util
import struct
import sys
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import torch

COUNTER, NUM_TASKS, FIRST_ARGUMENT = 0, 1, 2  # indexes of a kernel's integers

Launch: TypeAlias = "array[int]"  # a kernel's 64-bit integers
_Run = Callable[[int, int, int, int], None]


def has_kernels() -> bool:
    """Whether kernels can be compiled: Numba is installed, and the processor has 64-bit pointers."""
    return importlib.util.find_spec("numba") is not None and sys.maxsize > 2**32


def launch(kernel: int, num_tasks: int, *arguments: int) -> None:
    """Run a kernel's tasks on torch's threads, and wait for them. Releases the interpreter lock.

    Args:
        kernel: its address.
        num_tasks: tasks, numbered from 0.
        arguments: what the kernel takes, in its order; addresses of tensors stay valid as long as the tensors live.
    """
    integers = array("q", (0, num_tasks, *arguments))
    if _recorder.record is not None:
        _recorder.record(kernel, integers)
    _run()(kernel, integers.buffer_info()[0], min(torch.get_num_threads(), num_tasks), 0)


class _Recorder(threading.local):
    record: Callable[[int, Launch], None] | None = None


_recorder = _Recorder()


@contextmanager
def recording(record: Callable[[int, Launch], None]) -> Iterator[None]:
    """While it lasts, `record` gets the kernel and the integers of every launch of this thread."""
    before, _recorder.record = _recorder.record, record
    try:
        yield
    finally:
        _recorder.record = before


class LaunchSequence:
    """Launches that are repeated together, in one call: a barrier of the team separates one from the next."""

    def __init__(self, launches: Sequence[tuple[int, Launch]], kernel: int) -> None:
        """`kernel` is the address of `gradellm_engine.cpu_kernels.sequence.SEQUENCE`."""
        self._kernel, self._launches = kernel, [integers for _, integers in launches]
        for integers in self._launches:
            integers[COUNTER] = 0
        pairs = [(address, integers.buffer_info()[0]) for address, integers in launches]
        self._pairs = array("q", [number for pair in pairs for number in pair])

    def run(self) -> None:
        """Repeat them, with the numbers that are now at the addresses that they were given."""
        threads = torch.get_num_threads()
        arguments = (self._pairs.buffer_info()[0], len(self._launches), _barrier())
        integers = array("q", (0, threads, *arguments))
        _run()(self._kernel, integers.buffer_info()[0], threads, 0)


def bits(number: float) -> int:
    """A float as the integer of the same 64 bits, to be a kernel's argument."""
    integer: int = struct.unpack("q", struct.pack("d", number))[0]
    return integer


@cache
def _run() -> _Run:
    """OpenMP's `GOMP_parallel(function, data, num_threads, flags)`, or a plain call where torch has no OpenMP."""
    parallel = _openmp_function("GOMP_parallel")
    if parallel is None:
        as_function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        return lambda kernel, data, threads, flags: as_function(kernel)(data)
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel  # type: ignore[no-any-return]


@cache
def _barrier() -> int:
    """The address of OpenMP's `GOMP_barrier()`; 0 where torch has no OpenMP, and kernels run on one thread."""
    barrier = _openmp_function("GOMP_barrier")
    return 0 if barrier is None else ctypes.cast(barrier, ctypes.c_void_p).value or 0


def _openmp_function(name: str) -> Any:  # noqa: ANN401 (of ctypes)
    """A function of the OpenMP runtime that libtorch is linked with; None where there is none."""
    for library in [*map(str, Path(torch.__file__).parent.glob("lib/libtorch_cpu.*")), None]:
        try:
            # Looked up in the library and in what it is linked with, as its own calls are.
            return getattr(ctypes.CDLL(library), name)
        except (OSError, AttributeError):
            continue
    return None
