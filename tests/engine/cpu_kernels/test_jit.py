"""The operations that kernels are written with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("numba")
import numba
from numba import carray

from gradellm_engine.cpu_kernels.jit import as_float, compiled, exp, floats, integer, kernel, next_task
from gradellm_engine.cpu_kernels.team import FIRST_ARGUMENT, NUM_TASKS, bits, launch


@compiled()
def _exponentials(x, y):
    for i in range(len(x)):
        y[i] = exp(x[i])


def test_exponentials_are_right_to_a_few_units_in_the_last_place() -> None:
    x = np.concatenate([np.linspace(-86, 88, 200_001), [0, -0.0, 1e-30, -1e-30]]).astype(np.float32)
    y = np.empty_like(x)
    _exponentials(x, y)
    exact = np.exp(x.astype(np.float64))
    assert np.max(np.abs(y - exact) / exact) < 3 * np.finfo(np.float32).eps


def test_exponentials_of_extreme_numbers() -> None:
    x = np.array([-1e30, -np.inf, 1e30, np.inf, np.nan], np.float32)
    y = np.empty_like(x)
    _exponentials(x, y)
    assert np.all(y[:2] < 1e-37)
    assert np.all(np.isinf(y[2:4]))
    assert np.isnan(y[4])


def _double_tasks(arguments):
    """y[task] = factor number x[task]"""
    values = carray(arguments, FIRST_ARGUMENT + 4)
    x, y, factor, number = values[FIRST_ARGUMENT:]
    while True:
        task = next_task(arguments)
        if task >= values[NUM_TASKS]:
            break
        carray(floats(y), task + 1)[task] = as_float(factor) * integer(number) * carray(floats(x), task + 1)[task]


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_each_task_is_run_once_with_its_arguments(count: int) -> None:
    x, y, number = torch.randn(count), torch.full((count,), torch.nan), torch.tensor([3])
    launch(kernel(_double_tasks), count, x.data_ptr(), y.data_ptr(), bits(2.0), number.data_ptr())
    torch.testing.assert_close(y, 6 * x)


def test_kernels_are_compiled_without_a_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    original = numba.cfunc

    def cfunc(*args: object, cache: bool = False, **options: object) -> object:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return original(*args, **options)

    monkeypatch.setattr(numba, "cfunc", cfunc)
    x, y, number = torch.ones(2), torch.zeros(2), torch.tensor([4])
    launch(kernel(_double_tasks), 2, x.data_ptr(), y.data_ptr(), bits(0.5), number.data_ptr())
    assert y.tolist() == [2, 2]
