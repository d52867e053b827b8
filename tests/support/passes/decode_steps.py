"""Decode steps of several sequences in float64: their outcome in one pass, and one chunk after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gradellm_engine import Engine
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.params import GradEllm, Loosening, Magnitude, Rectify, Rotary, Similarity, Sink
from gradellm_engine.passes.base import ExplainSpec, SequenceChunk, Target
from support.attention.steps import RELEVANCE
from support.kv_fixtures import evict

LENGTHS = (1, 5, 12, 23)  # tokens before the step; the windows of the tiny models are between them
SWITCHES = [
    GradEllm(),
    GradEllm(similarity=Similarity.COSINE, rotary=Rotary.UNROTATED),
    GradEllm(similarity=Similarity.COSINE, rectify=Rectify.TOTAL),
    GradEllm(loosening=Loosening.NONE, magnitude=Magnitude.KNOCKOUT, rectify=Rectify.NONE),
    GradEllm(loosening=Loosening.NONE, magnitude=Magnitude.CHANNEL_ABS, rectify=Rectify.NONE),
    GradEllm(similarity=Similarity.COSINE, rotary=Rotary.UNROTATED, sink=Sink.EXCLUDE),
    GradEllm(loosening=Loosening.NONE, rectify=Rectify.PER_HEAD, sink=Sink.EXCLUDE),
    GradEllm(loosening=Loosening.NONE, magnitude=Magnitude.KNOCKOUT, rectify=Rectify.PER_HEAD, sink=Sink.EXCLUDE),
    RELEVANCE,
]
TARGETS = [Target(7), None, Target(9, 3), Target(11)]


@cache
def float64_runner(path: Path) -> ModelRunner:
    """The runner of a model, with a KV pool of 500 tokens; loaded once a process, so leave it without CUDA graphs."""
    runner = Engine.load(str(path), dtype="float64", kv_bytes=2**20).model.runner
    runner.allocate_pool(500)
    return runner


def explained(
    chunks: Sequence[SequenceChunk], switches: GradEllm, num_layers: int, *, domains: bool = False
) -> list[SequenceChunk]:
    """All but the second, over every other token of the first half where `domains`."""
    switches = replace(switches, layers=switches.selected_layers(num_layers))
    return [
        chunk
        if i == 1
        else replace(
            chunk, explain=ExplainSpec(switches, torch.arange((chunk.end + 1) // 2) % 2 == 0 if domains and i else None)
        )
        for i, chunk in enumerate(chunks)
    ]


def outcome(runner: ModelRunner, chunks: Sequence[SequenceChunk]) -> tuple[Tensor, list[Tensor]]:
    """Logits and heat maps; what was read is forgotten, so that it can be read again."""
    if all(chunk.explain is None for chunk in chunks):
        logits, maps = runner.step(chunks).clone(), []
    else:
        run = runner.explained_pass(chunks)
        logits = run.logits.clone()
        maps = [heat_map.clone() for heat_map in run.heat_maps([*TARGETS, *[None] * len(chunks)][: len(chunks)])]
    evict(chunks)
    return logits, maps


def assert_close(actual: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]]) -> None:
    assert torch.allclose(actual[0], expected[0], rtol=1e-9, atol=1e-12)
    assert len(actual[1]) == len(expected[1])
    for actual_row, expected_row in zip(actual[1], expected[1], strict=True):
        assert actual_row.shape == expected_row.shape
        assert torch.allclose(actual_row, expected_row, rtol=1e-9, atol=1e-12)


def one_by_one(runner: ModelRunner, chunks: Sequence[SequenceChunk]) -> tuple[Tensor, list[Tensor]]:
    """The outcome of one chunk after the other."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ModelRunner, "runs_batched", lambda *args: False)
        return outcome(runner, chunks)
