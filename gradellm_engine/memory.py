"""Whether an error says that memory ran out, and how to get some back."""

from __future__ import annotations

import gc

import torch

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
