"""How much memory there is, whether an error says that it ran out, and how to get some back."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import torch

_CONTROL_GROUP = Path("/sys/fs/cgroup")

# What plain RuntimeErrors say: torch's of a processor's memory, and of a GPU's where a library or a driver has no room.
_SAID = ("DefaultCPUAllocator", "CUDA error: out of memory", "[CUDA]: out of memory", "STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or of the machine."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


def free_caches() -> None:
    """Give back what is only kept for later use, so that the next pass finds it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def available_bytes(control_group: Path = _CONTROL_GROUP) -> int:
    """Memory that this process can still take: of the machine, and of its control group where that has a limit.

    A container that may have 4 GiB of a machine's 256 is ended by the kernel when it takes more. As the kubelet does,
    files that were read and not used lately are no use of memory: they are let go where room is needed.
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
    """Bytes that are free, and all there are, of those devices that are GPUs and answer; by their names."""
    found: dict[str, tuple[int, int]] = {}
    for name in devices:
        if torch.device(name).type == "cuda":
            with suppress(RuntimeError):  # a GPU that failed
                found[name] = torch.cuda.mem_get_info(name)
    return found
