"""Available memory, detection of out-of-memory errors, and freeing of caches."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

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


def available_bytes(control_group: Path = _CONTROL_GROUP) -> int:
    """Memory that this process can still take, within the machine's and its control group's limit.

    The kernel kills a container that exceeds its limit, whatever the machine has. As in the kubelet's accounting,
    inactive file cache does not count as used: the kernel reclaims it.
    """
    free = int(psutil.virtual_memory().available)
    try:
        limit = (control_group / "memory.max").read_text().strip()
        used = int((control_group / "memory.current").read_text())
        kinds = dict(line.split() for line in (control_group / "memory.stat").read_text().splitlines())
        return free if limit == "max" else max(0, min(free, int(limit) - used + int(kinds.get("inactive_file", 0))))
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
