"""Decode steps of a model with kernels of fused attention and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from gradellm_engine import GradEllm
from gradellm_engine.attention.fused import FusedAttention
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.params import Gradient, Loosening, Magnitude, Rectify, Sink
from gradellm_engine.passes.base import ExplainSpec, SequenceChunk, Target
from support.attention.kernels import close
from support.kv_fixtures import evict, filled

RELEVANCE = GradEllm(
    loosening=Loosening.NONE,
    magnitude=Magnitude.HEAD_ABS,
    rectify=Rectify.NONE,
    sink=Sink.EXCLUDE,
    gradient=Gradient.RELEVANCE,
)
METHODS = [
    GradEllm(),
    GradEllm(loosening=Loosening.NONE, magnitude=Magnitude.KNOCKOUT, rectify=Rectify.NONE),
    GradEllm(layers=(1,), rectify=Rectify.NONE),
    GradEllm(sink=Sink.EXCLUDE),
    GradEllm(loosening=Loosening.NONE, magnitude=Magnitude.KNOCKOUT, rectify=Rectify.PER_HEAD, sink=Sink.EXCLUDE),
    RELEVANCE,
]


def check_steps(runner: ModelRunner, kernels: FusedAttention, method: GradEllm) -> None:
    """Logits and scores of three sequences' tokens."""
    runner.allocate_pool(400)
    switches = replace(method, layers=method.selected_layers(runner.num_layers))
    chunks = filled(runner, (1, 5, 30), ExplainSpec(switches))
    (plain, rows), (logits, fused_rows) = (_outcome(runner, chunks, fused) for fused in (None, kernels))
    assert close(logits, plain.double().cpu(), 1e-5)
    for row, expected in zip(fused_rows, rows, strict=True):
        assert expected.any() or (method.excludes_sink and len(expected[0]) == 2)  # one source: nothing to compare with
        assert close(row, expected.double(), 1e-5)


def _outcome(
    runner: ModelRunner, chunks: Sequence[SequenceChunk], fused: FusedAttention | None
) -> tuple[Tensor, list[Tensor]]:
    """Logits and scores; what was read is forgotten."""
    runner.fused_attention = fused
    run = runner.explained_pass(chunks)
    assert runner.runs_batched(chunks)
    scores = run.heat_maps([Target(7), Target(9, 3), Target(11)])
    evict(chunks)
    return run.logits, scores
