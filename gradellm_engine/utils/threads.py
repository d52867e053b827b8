"""The number of CPU threads."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def use_threads(count: int | None) -> None:
    """Set torch's number of threads; None for the CPUs that this process may use, but not more than torch's default.

    torch counts the machine's cores. In a container with a quota of four CPUs on a machine of sixty-four, it would
    start sixty-four threads, use up the quota in the first part of every scheduling period and be throttled.
    """
    torch.set_num_threads(count or min(torch.get_num_threads(), available_cpus()))


def available_cpus(cpu_max: Path = _CPU_MAX) -> int:
    """CPUs that this process may run on, within its control group's quota if it has one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text().split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, math.ceil(int(quota) / int(period))))
