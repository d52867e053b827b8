"""Steps of many sequences at once against one chunk after the other, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.params import Loosening
from gradellm_engine.passes.base import ExplainSpec, SequenceChunk
from gradellm_engine.passes.batched import is_step
from support.kv_fixtures import filled
from support.passes.decode_steps import (
    LENGTHS,
    SWITCHES,
    assert_close,
    explained,
    float64_runner,
    one_by_one,
    outcome,
)


@pytest.fixture
def runner(model_path: Callable[[str], Path]) -> Callable[[str], ModelRunner]:
    """A family's random model in float64, loaded once."""
    return lambda name: float64_runner(model_path(name))


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "computed twice"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_batched_equals_one_by_one(runner: Any, monkeypatch: pytest.MonkeyPatch, family: str, kept: bool) -> None:
    if not kept:
        monkeypatch.setattr("gradellm_engine.passes.batched.MAX_KEPT_PRODUCTS", 0)
    model = runner(family)
    chunks = filled(model, LENGTHS)
    assert model.runs_batched(chunks)
    assert_close(outcome(model, chunks), one_by_one(model, chunks))
    for switches in SWITCHES:
        for domains in (False, True):
            if domains and switches.loosening is Loosening.NONE:
                continue
            these = explained(chunks, switches, model.num_layers, domains=domains)
            assert model.runs_batched(these)
            actual, expected = outcome(model, these), one_by_one(model, these)
            # Domains may lie before a window; without the sink, the second token of a sequence has one source.
            assert all(heat_map.any() for heat_map in expected[1]) or domains or switches.excludes_sink
            assert_close(actual, expected)


def test_keys_and_values_are_stored_alike(runner: Any) -> None:
    model = runner("llama")
    stored = []
    for run in (outcome, one_by_one):
        chunks = filled(model, LENGTHS)
        run(model, chunks)
        stored.append(
            [
                torch.cat([x[:, chunk.slot.start : chunk.slot.start + chunk.end] for chunk in chunks], 1)
                for x in (*model.pool.keys, *model.pool.values, model.pool.cosines[0][None], model.pool.sines[0][None])
            ]
        )
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(*stored, strict=True))


def test_is_step(runner: Any) -> None:
    model = runner("llama")
    chunks = filled(model, LENGTHS)
    assert is_step(chunks)
    assert is_step(explained(chunks, SWITCHES[0], 2))
    assert not is_step([explained(chunks, SWITCHES[0], 2)[0], explained(chunks, SWITCHES[1], 2)[2]])
    assert not is_step([*chunks[1:], SequenceChunk.new(chunks[0].slot, [1, 2])])
    assert not is_step([SequenceChunk.replay(chunks[3].slot, 4, 5, ExplainSpec(SWITCHES[0]))])
