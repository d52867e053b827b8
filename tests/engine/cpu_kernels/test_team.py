"""Kernels on torch's threads."""

from __future__ import annotations

import ctypes
import struct

import pytest
import torch

from gradellm_engine.cpu_kernels import team
from gradellm_engine.cpu_kernels.team import COUNTER, FIRST_ARGUMENT, NUM_TASKS, bits, has_kernels, launch


class Calls:
    """A kernel in Python: remembers what it is called with, and takes all tasks."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []
        self.function = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_int64))(self._run)
        self.address = ctypes.cast(self.function, ctypes.c_void_p).value or 0

    def _run(self, integers: ctypes.Array[ctypes.c_int64]) -> None:
        self.seen.append(tuple(integers[i] for i in range(FIRST_ARGUMENT + 2)))
        integers[COUNTER] = integers[NUM_TASKS]


@pytest.mark.parametrize("num_tasks", [1, 2, 50])
def test_a_kernel_gets_its_tasks_and_arguments_on_each_thread(num_tasks: int) -> None:
    calls = Calls()
    launch(calls.address, num_tasks, 5, -7)
    assert len(calls.seen) == min(torch.get_num_threads(), num_tasks)
    assert {seen[NUM_TASKS:] for seen in calls.seen} == {(num_tasks, 5, -7)}


def test_without_openmp_a_kernel_is_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str | None) -> object:
        raise OSError(name)

    team._run.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", missing)
    try:
        calls = Calls()
        launch(calls.address, 50, 1, 2)
        assert calls.seen == [(0, 50, 1, 2)]
    finally:
        team._run.cache_clear()


def test_floats_travel_as_bits() -> None:
    assert struct.unpack("d", struct.pack("q", bits(-1.25)))[0] == -1.25


def test_kernels_need_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_kernels()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not has_kernels()
