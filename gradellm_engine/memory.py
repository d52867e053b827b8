"""Whether an error says that memory ran out, and how to get some back."""

from __future__ import annotations

import gc

import torch

_CPU_ALLOCATOR = "DefaultCPUAllocator"  # torch raises a plain RuntimeError there, with this in its text


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or of the machine."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and _CPU_ALLOCATOR in str(error)


def free_caches() -> None:
    """Give back what is only kept for later use, so that the next pass finds it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
