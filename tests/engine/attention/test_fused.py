"""Which layers the kernels are for, and steps of a model with and without them; interpreted without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gradellm_engine import Engine, GradEllm
from gradellm_engine.attention.ops import AttentionForm
from gradellm_engine.attribution.grad_sam import GradSam
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.params import LayerSwitches, Loosening, Magnitude, Rectify, Rotary, Similarity
from gradellm_engine.passes.base import ExplainSpec, SequenceChunk, Target
from support.attention.kernels import DEVICE, close
from support.kv_fixtures import evict, filled

pytest.importorskip("triton")
from gradellm_engine.attention.fused import FusedAttention, MapKind

UNLOOSENED = GradEllm(loosening=Loosening.NONE, rectify=Rectify.NONE)


@pytest.mark.parametrize(
    ("switches", "kind"),
    [
        (None, MapKind.NOTHING),
        (GradEllm(), MapKind.PRODUCTS),
        (GradEllm(similarity=Similarity.COSINE), None),
        (GradEllm(similarity=Similarity.COSINE, rotary=Rotary.UNROTATED), None),
        (UNLOOSENED, MapKind.SIGNED_SUM),
        (replace(UNLOOSENED, magnitude=Magnitude.HEAD_ABS), MapKind.HEAD_ABS),
        (replace(UNLOOSENED, magnitude=Magnitude.KNOCKOUT), MapKind.KNOCKOUT),
        (replace(UNLOOSENED, magnitude=Magnitude.CHANNEL_ABS), None),
        (GradSam(), None),
    ],
)
def test_maps_that_the_kernels_compute(switches: LayerSwitches | None, kind: MapKind | None) -> None:
    """None takes the plain operations instead."""
    assert FusedAttention.map_kind(switches) is kind


def test_kinds_of_attention_that_the_kernels_compute() -> None:
    plain, query = AttentionForm(0.5), torch.zeros(2, 1, 4)
    assert FusedAttention.supports(query, plain)
    assert FusedAttention.supports(query.bfloat16(), replace(plain, window=3))
    assert not FusedAttention.supports(query.double(), plain)
    assert not FusedAttention.supports(query, replace(plain, softcap=30.0))
    assert not FusedAttention.supports(query, replace(plain, sinks=torch.zeros(2)))


METHODS = [
    GradEllm(),
    GradEllm(loosening=Loosening.NONE, magnitude=Magnitude.KNOCKOUT, rectify=Rectify.NONE),
    GradEllm(layers=(1,), rectify=Rectify.NONE),
]


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mistral", "gpt2"))]
)
def test_a_models_steps(model_path: Callable[[str], Path], family: str) -> None:
    """With the kernels and without."""
    runner = Engine.load(str(model_path(family)), dtype="float32", device=str(DEVICE), kv_bytes=2**20).model.runner
    runner.allocate_pool(400)
    for method in METHODS:
        switches = replace(method, layers=method.selected_layers(runner.num_layers))
        chunks = filled(runner, (1, 5, 30), ExplainSpec(switches))
        (plain, rows), (logits, fused_rows) = (outcome(runner, chunks, fused=fused) for fused in (False, True))
        assert close(logits, plain.double().cpu(), 1e-5)
        for row, expected in zip(fused_rows, rows, strict=True):
            assert expected.any()
            assert close(row, expected.double(), 1e-5)


def outcome(runner: ModelRunner, chunks: Sequence[SequenceChunk], *, fused: bool) -> tuple[Tensor, list[Tensor]]:
    """Logits and scores; what was read is forgotten."""
    runner.fused_attention = FusedAttention(DEVICE) if fused else None
    run = runner.explained_pass(chunks)
    assert runner.runs_batched(chunks)
    scores = run.heat_maps([Target(7), Target(9, 3), Target(11)])
    evict(chunks)
    return run.logits, scores
