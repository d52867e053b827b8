"""How much memory there is, and what counts as memory that ran out."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from gradellm_engine.utils.memory import available_bytes, free_caches, is_out_of_memory, resident_bytes, return_unused

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


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 1000),  # no control group of version 2
        ({"memory.max": "max\n", "memory.current": "700\n", "memory.stat": "inactive_file 0\n"}, 1000),
        ({"memory.max": "800\n", "memory.current": "700\n", "memory.stat": "anon 5\ninactive_file 0\n"}, 100),
        ({"memory.max": "800\n", "memory.current": "700\n", "memory.stat": "anon 5\ninactive_file 300\n"}, 400),
        ({"memory.max": "9000\n", "memory.current": "700\n", "memory.stat": "inactive_file 0\n"}, 1000),
        ({"memory.max": "600\n", "memory.current": "700\n", "memory.stat": "inactive_file 0\n"}, 0),
        ({"memory.max": "600\n", "memory.current": "700\n"}, 1000),
    ],
)
def test_a_control_groups_limit_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert available_bytes(tmp_path) == expected


def test_a_limit_of_the_process(tmp_path: Path) -> None:
    taken = resident_bytes()
    assert 2**20 < taken < 2**40
    assert available_bytes(tmp_path, limit=taken // 2) == 0
    spare = available_bytes(tmp_path, limit=taken + 2**22)
    assert 0 <= spare <= 2**23  # the process goes on meanwhile


def test_unused_memory_is_given_back() -> None:
    """What is freed between blocks that are in use stays with the process, until it is given back."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the C library has no malloc_trim")
    blocks = [bytes(60_000) for _ in range(4000)]  # below the size that malloc maps by itself
    del blocks[: len(blocks) - 1]
    before = resident_bytes()
    return_unused()
    assert resident_bytes() <= before - 8 * 2**20
