"""The last layer is computed for the tokens whose logits are needed; what is stored and returned is the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from gradellm_engine import Engine, GradEllm
from gradellm_engine.kv_cache.pool import KVSlot
from gradellm_engine.model import runner as module
from gradellm_engine.model.last_layer import KeysAndValuesPass
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.base import ExplainSpec, SequenceChunk, StopForward, Target
from support.oracle import relative_error
from support.tiny_models import FAMILIES

TOLERANCE = 1e-5  # in float32
IDS = [3 + (7 * i) % 200 for i in range(64)]


@pytest.fixture(params=sorted(FAMILIES), scope="module")
def runner(request: pytest.FixtureRequest, model_path: Callable[[str], Path]) -> ModelRunner:
    runner = Engine.load(str(model_path(request.param)), dtype="float32").model.runner
    runner.allocate_pool(256)
    runner.cpu_traces = None  # they run passes of few tokens
    return runner


@pytest.fixture
def slots(runner: ModelRunner) -> Iterator[list[KVSlot]]:
    opened = [runner.pool.allocate_probe(len(IDS)) for _ in range(2)]
    runner.prefill([SequenceChunk.new(opened[0], IDS[:12])])
    yield opened
    for slot in opened:
        slot.close()


def stored(runner: ModelRunner, slot: KVSlot) -> list[Tensor]:
    """Keys and values of all layers."""
    layers = range(runner.num_layers)
    return [read(layer, 0, slot.length).clone() for layer in layers for read in (slot.keys, slot.values)]


@contextmanager
def mlp_rows(runner: ModelRunner) -> Iterator[list[int]]:
    """How many tokens go through the last layer's MLP, in each call."""
    rows: list[int] = []
    names = ("mlp", "moe", "feed_forward", "feedforward", "fc1")
    mlp = next(child for name, child in runner.blocks[-1].named_children() if any(part in name for part in names))
    hook = mlp.register_forward_pre_hook(lambda mlp, args: rows.append(args[0].shape[:-1].numel()))
    try:
        yield rows
    finally:
        hook.remove()


def test_a_mixed_pass_is_split(runner: ModelRunner, slots: list[KVSlot]) -> None:
    results: list[list[Tensor]] = []
    for min_tokens in (10**9, 1):
        for slot in slots:
            del slot.ids[12 if slot is slots[0] else 0 :]
        with patch.object(module, "MIN_SPLIT_TOKENS", min_tokens):
            prefill = SequenceChunk.new(slots[1], IDS[2:42])
            step = [SequenceChunk.new(slots[0], IDS[12:13]), SequenceChunk.new(slots[1], IDS[42:43], after=prefill)]
            with mlp_rows(runner) as rows:
                logits = runner.step(step, [prefill])
        assert rows == ([2] if min_tokens == 1 else [42])
        results.append([logits, *stored(runner, slots[0]), *stored(runner, slots[1])])
    for whole, split in zip(*results, strict=True):
        assert relative_error(split, whole.double()) <= TOLERANCE


def test_a_prefill_ends_at_keys_and_values(runner: ModelRunner, slots: list[KVSlot]) -> None:
    found = []
    for skips in (False, True):
        slots[1].ids.clear()
        with patch.object(runner, "_skips_last_layer", skips), mlp_rows(runner) as rows:
            runner.prefill([SequenceChunk.new(slots[1], IDS)])
        assert rows == ([] if skips else [len(IDS)])
        found.append(stored(runner, slots[1]))
    assert all(map(torch.equal, *found))


def test_outputs_of_split_layers_are_replayed(runner: ModelRunner, slots: list[KVSlot]) -> None:
    """A token of a mixed pass that waits for its scores: its linear outputs are cached, the last layer's, too."""
    explain, caches_all = ExplainSpec(GradEllm(layers=tuple(range(runner.num_layers)))), False
    rows: list[Tensor] = []
    for min_tokens in (10**9, 1):
        for slot in slots:
            del slot.ids[12 if slot is slots[0] else 0 :]
        with patch.object(module, "MIN_SPLIT_TOKENS", min_tokens):
            step = [SequenceChunk.new(slots[0], IDS[12:13], replay_length=1)]
            runner.step(step, [SequenceChunk.new(slots[1], IDS[:30])])
        assert not caches_all or runner.activation_cache.caches_all_layers
        caches_all = runner.activation_cache.caches_all_layers
        rows += runner.replay([SequenceChunk.replay(slots[0], 12, 13, explain)], [Target(7)])
    assert relative_error(rows[1], rows[0].double()) <= TOLERANCE


def test_a_pass_of_keys_and_values_computes_no_attention(runner: ModelRunner, slots: list[KVSlot]) -> None:
    run = KeysAndValuesPass(runner._ragged_pass([SequenceChunk.new(slots[1], IDS)]))
    assert run.ids_and_positions.tolist() == [IDS, list(range(len(IDS)))]
    assert run.heat_maps() == []
    with pytest.raises(StopForward):
        run.layer_attention(runner.blocks[-1], 0, None)  # type: ignore[arg-type]
