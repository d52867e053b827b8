"""Where Triton kernels run in tests, and how close their results are."""

from __future__ import annotations

import torch
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # a CPU interprets them


def close(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether they differ by no more, relative to the larger of the expected norm and one."""
    return float((actual.cpu().double() - expected).norm()) <= tolerance * max(1.0, float(expected.norm()))
