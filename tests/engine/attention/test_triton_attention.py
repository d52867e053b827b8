"""Which layers the kernels of GPUs are for, and steps of a model with and without them; interpreted without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gradellm_engine import Engine
from gradellm_engine.attention.ops import AttentionForm
from support.attention.kernels import DEVICE
from support.attention.steps import METHODS, check_steps

pytest.importorskip("triton")
from gradellm_engine.attention.triton_attention import TritonAttention


def test_kinds_of_attention_that_the_kernels_compute() -> None:
    plain, query = AttentionForm(0.5), torch.zeros(2, 1, 4)
    assert TritonAttention.supports(query, plain)
    assert TritonAttention.supports(query.bfloat16(), replace(plain, window=3))
    assert not TritonAttention.supports(query.double(), plain)
    assert not TritonAttention.supports(query, replace(plain, softcap=30.0))
    assert not TritonAttention.supports(query, replace(plain, sinks=torch.zeros(2)))


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mistral", "gpt2"))]
)
def test_a_models_steps(model_path: Callable[[str], Path], family: str) -> None:
    """With the kernels and without."""
    runner = Engine.load(str(model_path(family)), dtype="float32", device=str(DEVICE), kv_bytes=2**20).model.runner
    for method in METHODS:
        check_steps(runner, TritonAttention(DEVICE), method)
