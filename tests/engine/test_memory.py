"""What counts as memory that ran out."""

from __future__ import annotations

import pytest
import torch

from gradellm_engine.memory import free_caches, is_out_of_memory

RAN_OUT = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("CUDA error: out of memory\nand pages of advice"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", RAN_OUT, ids=repr)
def test_memory_that_ran_out(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_an_allocation_on_the_cpu_that_cannot_be() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    free_caches()


@pytest.mark.parametrize("error", [RuntimeError("a kernel failed"), ValueError("memory")], ids=repr)
def test_other_errors(error: Exception) -> None:
    assert not is_out_of_memory(error)
