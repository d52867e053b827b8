"""Kernels as operators of torch."""

from __future__ import annotations

import torch
from torch import Tensor

from gradellm_engine.compilation.tracer import Tracer
from gradellm_engine.cpu_kernels.operators import implementations, operator


def _tripled(x: Tensor) -> Tensor:
    return x * 3


def test_a_trace_calls_the_function_itself() -> None:
    tripled = operator("tripled_in_a_test(Tensor x) -> Tensor", _tripled)
    assert implementations[tripled] is _tripled
    tracer, x = Tracer(), torch.ones(2)
    tracer.new(x)
    with tracer:
        y = tripled(x)
    assert y.tolist() == [3, 3]
    assert [operation.function for operation in tracer.operations] == [_tripled]
