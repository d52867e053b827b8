"""How many threads the arithmetic may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def use_threads(count: int | None) -> None:
    """Compute with `count` threads; None for as many as this process may run at once, but not more than torch's own.

    torch counts the machine's cores. A container that may use four of sixty-four would start sixty-four threads, use
    up its time in the first part of every period and stand still for the rest.
    """
    torch.set_num_threads(count or min(torch.get_num_threads(), available_cpus()))


def available_cpus(cpu_max: Path = _CPU_MAX) -> int:
    """Cores that this process may run on, within its control group's quota where it has one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text().split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, math.ceil(int(quota) / int(period))))
