"""Memory bandwidth of a device. It bounds decoding: a plain step reads all weights once, an explained step twice."""

from __future__ import annotations

import statistics

import torch

from gradellm_bench.timeline import Stopwatch

_BYTES = 2**29
_ROUNDS = 7


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second, the median over half-GiB transfers: a sum (read) on a CPU, a copy (read and write) on a GPU."""
    source = torch.ones(_BYTES // 4, device=device)
    target = torch.empty_like(source) if device.type == "cuda" else None
    seconds = []
    for _ in range(_ROUNDS + 1):
        _synchronize(device)
        watch = Stopwatch()
        if target is None:
            source.sum()
        else:
            target.copy_(source)
        _synchronize(device)
        seconds.append(watch())
    return _BYTES * (1 if target is None else 2) / statistics.median(seconds[1:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
