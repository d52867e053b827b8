"""Available memory, detection of out-of-memory errors, and return of what is unused."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch

_CONTROL_GROUP = Path("/sys/fs/cgroup")

# In messages of plain RuntimeErrors: torch's CPU allocator, and CUDA libraries or the driver without room.
_MESSAGES = ("DefaultCPUAllocator", "CUDA error: out of memory", "[CUDA]: out of memory", "STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error is for lack of memory, of a GPU or of the machine."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


def free_caches() -> None:
    """Release garbage and torch's cached GPU memory, for the next pass."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def return_unused() -> None:
    """Give unused memory of the heap back to the system: what a large request took would stay with the process."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:  # noqa: ANN401 (of ctypes)
    """The C library's `malloc_trim(pad)`; None where there is none."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None


def resident_bytes() -> int:
    """Memory that this process takes now."""
    return int(psutil.Process().memory_info().rss)


def available_bytes(control_group: Path = _CONTROL_GROUP, *, limit: int | None = None) -> int:
    """Memory that this process can still take, within the machine's and its control group's limit, and one of its own.

    The kernel kills a container that exceeds its limit, whatever the machine has. As in the kubelet's accounting,
    inactive file cache does not count as used: the kernel reclaims it.
    """
    free = int(psutil.virtual_memory().available)
    if limit is not None:
        free = max(0, min(free, limit - resident_bytes()))
    try:
        group_limit = (control_group / "memory.max").read_text().strip()
        used = int((control_group / "memory.current").read_text())
        kinds = dict(line.split() for line in (control_group / "memory.stat").read_text().splitlines())
        if group_limit == "max":
            return free
        return max(0, min(free, int(group_limit) - used + int(kinds.get("inactive_file", 0))))
    except (OSError, ValueError):  # no control group of version 2
        return free


def gpu_memory(devices: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Free and total bytes of the devices that are GPUs and respond, by name."""
    found: dict[str, tuple[int, int]] = {}
    for name in devices:
        if torch.device(name).type == "cuda":
            with suppress(RuntimeError):  # a GPU that failed
                found[name] = torch.cuda.mem_get_info(name)
    return found
