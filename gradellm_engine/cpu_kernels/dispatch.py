"""Which tensors the kernels compute with."""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from gradellm_engine.cpu_kernels.team import has_kernels
from gradellm_engine.utils.torch_compat import functorch_is_active


def kernels_for(*tensors: Tensor) -> ModuleType | None:
    """`gradellm_engine.cpu_kernels.elementwise`, if it computes with these tensors: float32 numbers on a CPU.

    Not inside `torch.func` transforms, which have no rules for these operators.
    """
    for x in tensors:
        if x.dtype is not torch.float32 or x.device.type != "cpu":
            return None
    return None if functorch_is_active() else _elementwise()


@cache
def _elementwise() -> ModuleType | None:
    if not has_kernels():
        return None
    from gradellm_engine.cpu_kernels import elementwise  # needs Numba, and takes seconds

    return elementwise
