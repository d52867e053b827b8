"""Which tensors the kernels compute with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradellm_engine.cpu_kernels.dispatch import kernels_for


def test_kernels_are_for_float32_numbers_on_a_cpu_outside_of_transforms() -> None:
    pytest.importorskip("numba")
    x, seen = torch.ones(2), list[object]()
    assert kernels_for(x, x) is not None
    assert kernels_for(x, x.double()) is None
    assert kernels_for(x.to("meta")) is None

    def transformed(each: Tensor) -> Tensor:
        seen.append(kernels_for(each))
        return each

    torch.func.vmap(transformed)(x)
    assert seen == [None]
