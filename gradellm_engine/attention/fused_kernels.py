"""The kernels of fused attention for a device."""

from __future__ import annotations

import importlib.util

import torch

from gradellm_engine.attention.fused import FusedAttention
from gradellm_engine.cpu_kernels.team import has_kernels


def fused_attention(device: torch.device) -> FusedAttention | None:
    """The kernels for a device, if there are any."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        from gradellm_engine.attention.triton_attention import TritonAttention  # needs Triton

        return TritonAttention(device)
    if device.type == "cpu" and has_kernels():
        from gradellm_engine.attention.numba_attention import NumbaAttention  # needs Numba

        return NumbaAttention()
    return None
