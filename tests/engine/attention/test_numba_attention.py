"""Kernels of CPUs against `gradellm_engine.attention.ops` in float64, and steps of a model with and without them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradellm_engine import Engine, GradEllm
from gradellm_engine.attention.fused import MapKind
from gradellm_engine.attention.ops import AttentionForm, InputGradient
from gradellm_engine.kv_cache.pool import Sequences
from support.attention.kernels import check
from support.attention.steps import METHODS, check_steps

pytest.importorskip("numba")
from gradellm_engine.attention.numba_attention import NumbaAttention

CPU = torch.device("cpu")
KERNELS = NumbaAttention()


@given(
    lengths=st.lists(st.integers(9, 99), min_size=1, max_size=4),
    T=st.integers(1, 9),
    heads=st.tuples(st.integers(1, 3), st.integers(1, 5)),
    widths=st.tuples(st.integers(1, 20).map(lambda half: 2 * half), st.integers(1, 40)),
    window=st.none() | st.integers(1, 120),
    kind=st.sampled_from(MapKind),
    needs=st.sampled_from(InputGradient),
    excludes_sink=st.booleans(),
    sink=st.sampled_from([0.0, 5.0, 12.0]),
)
def test_all_results(
    lengths: list[int],
    T: int,
    heads: tuple[int, int],
    widths: tuple[int, int],
    window: int | None,
    kind: MapKind,
    *,
    needs: InputGradient,
    excludes_sink: bool,
    sink: float,
) -> None:
    (G, r), (D, Dv), width = heads, widths, max(lengths)
    visible = width if window is None else min(width, window + T - 1)
    if visible < width:  # a window's maps have only the columns that it can see
        lengths = [max(n, visible) for n in lengths]
    check(
        KERNELS, CPU, lengths, T=T, G=G, r=r, D=D, Dv=Dv, window=window, width=width, dtype=torch.float32, kind=kind,
        needs=needs, excludes_sink=excludes_sink, sink=sink,
    )  # fmt: skip


def test_kinds_of_attention_that_the_kernels_compute() -> None:
    plain, query = AttentionForm(0.5), torch.zeros(2, 1, 4)
    assert KERNELS.supports(query, replace(plain, window=3))
    assert not KERNELS.supports(query.bfloat16(), plain)
    assert not KERNELS.supports(query.double(), plain)
    assert not KERNELS.supports(query, replace(plain, softcap=30.0))
    assert not KERNELS.supports(query, replace(plain, sinks=torch.zeros(2)))


def test_new_keys_and_values_are_written_to_each_sequences_place() -> None:
    keys, values = torch.zeros(2, 40, 4), torch.zeros(2, 40, 6)
    starts, lengths = torch.tensor([[3, 20], [5, 9]])
    new_keys, new_values = torch.randn(2, 2, 4), torch.randn(2, 2, 6)  # two heads, one token of each sequence
    KERNELS.store(new_keys, new_values, Sequences(keys, values, starts, lengths, 1, 9))
    places = [3 + 4, 20 + 8]
    assert torch.equal(keys[:, places], new_keys)
    assert torch.equal(values[:, places], new_values)
    assert keys.count_nonzero() == new_keys.count_nonzero()
    assert values.count_nonzero() == new_values.count_nonzero()


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
@pytest.mark.parametrize("method", METHODS)
def test_a_models_steps(model_path: Callable[[str], Path], family: str, method: GradEllm) -> None:
    """With the kernels and without."""
    runner = Engine.load(str(model_path(family)), dtype="float32", device="cpu", kv_bytes=2**20).model.runner
    check_steps(runner, KERNELS, method)
