"""Mixed passes: a prefill and a decode step together give the numbers that they give one after the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradellm_engine import Engine, GradEllm
from gradellm_engine.kv_cache.pool import KVSlot
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.base import ExplainSpec, SequenceChunk, Target
from gradellm_engine.passes.mixed import MixedPass
from gradellm_engine.passes.ragged import RaggedPass
from support.oracle import relative_error

TOLERANCE = 1e-5  # in float32
NUM_TOKENS = 600
IDS = [3 + (7 * i) % 200 for i in range(64)]
FAMILIES = ("llama", "gemma2", "gpt2")


@pytest.fixture(scope="module")
def runners(model_path: Callable[[str], Path]) -> dict[str, ModelRunner]:
    runners = {name: Engine.load(str(model_path(name)), dtype="float32").model.runner for name in FAMILIES}
    for runner in runners.values():
        runner.allocate_pool(NUM_TOKENS)
    return runners


def slots(runner: ModelRunner, lengths: list[int]) -> list[KVSlot]:
    """Sequences of the first tokens of IDS, each rotated by its index."""
    found = []
    for i, length in enumerate(lengths):
        slot = runner.pool.allocate_probe(len(IDS) + 8)
        if length:
            runner.prefill([SequenceChunk.new(slot, tokens(i)[:length])])
        found.append(slot)
    return found


def tokens(i: int) -> list[int]:
    return IDS[i:] + IDS[:i]


def close(opened: list[KVSlot]) -> None:
    for slot in opened:
        slot.close()


@given(
    family=st.sampled_from(FAMILIES),
    decoding=st.lists(st.integers(1, 40), max_size=3),
    prefilling=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 30), st.booleans()), min_size=1, max_size=3),
)
@settings(max_examples=25)
def test_a_mixed_pass_equals_its_parts(
    runners: dict[str, ModelRunner],
    family: str,
    decoding: list[int],
    prefilling: list[tuple[int, int, bool]],
) -> None:
    """`prefilling` has for each prompt its cached tokens, the tokens that the pass prefills, and whether it ends."""
    runner, first = runners[family], len(decoding)

    def chunks(opened: list[KVSlot]) -> tuple[list[SequenceChunk], list[SequenceChunk]]:
        prefill, step = (
            [],
            [SequenceChunk.new(slot, tokens(i)[slot.length :][:1]) for i, slot in enumerate(opened[:first])],
        )
        for i, (slot, (cached, count, ends)) in enumerate(zip(opened[first:], prefilling, strict=True), first):
            chunk = SequenceChunk.new(slot, tokens(i)[cached : cached + count])
            prefill.append(chunk)
            if ends:
                step.append(SequenceChunk.new(slot, tokens(i)[chunk.end :][:1], after=chunk))
        return prefill, step

    lengths = [*decoding, *(cached for cached, _, _ in prefilling)]
    opened = slots(runner, lengths)
    prefill, step = chunks(opened)
    if step:
        mixed = runner.step(step, prefill)
    else:
        runner.prefill(prefill)
    after = [slot.length for slot in opened]
    keys = [slot.keys(runner.num_layers - 1, 0, slot.length).clone() for slot in opened]
    ids = [list(slot.ids) for slot in opened]
    close(opened)

    opened = slots(runner, lengths)
    prefill, step = chunks(opened)
    for chunk in prefill:
        runner.prefill([chunk])
    apart = [runner.step([chunk]) for chunk in step]
    assert [slot.length for slot in opened] == after
    assert [list(slot.ids) for slot in opened] == ids
    for slot, stored in zip(opened, keys, strict=True):
        assert relative_error(stored, slot.keys(runner.num_layers - 1, 0, slot.length).double()) <= TOLERANCE
    if step:
        assert relative_error(mixed, torch.cat(apart).double()) <= TOLERANCE
    close(opened)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_explained_token_of_a_mixed_pass_is_replayed(runners: dict[str, ModelRunner], family: str) -> None:
    runner = runners[family]
    explain = ExplainSpec(GradEllm(layers=tuple(range(runner.num_layers))))
    opened = slots(runner, [12, 9])
    prefill = [SequenceChunk.new(opened[1], tokens(1)[9:30])]
    step = [
        SequenceChunk.new(opened[0], tokens(0)[12:13], replay_length=1),
        SequenceChunk.new(opened[1], tokens(1)[30:31], after=prefill[0], replay_length=1),
    ]
    runner.step(step, prefill)
    targets = [Target(7), Target(11, 9)]
    replays = [SequenceChunk.replay(slot, slot.length - 1, slot.length, explain) for slot in opened]
    rows = runner.replay(replays, targets)
    close(opened)
    opened = slots(runner, [12, 30])
    for i, (slot, target, row) in enumerate(zip(opened, targets, rows, strict=True)):
        chunk = SequenceChunk.new(slot, tokens(i)[slot.length :][:1], explain)
        (expected,) = runner.explained_pass([chunk]).heat_maps([target])
        assert relative_error(row, expected.double()) <= TOLERANCE
    close(opened)


def test_only_the_last_rows_have_logits(runners: dict[str, ModelRunner]) -> None:
    """Of a prompt, logits would take as much memory as its tokens times the vocabulary."""
    runner = runners["llama"]
    opened = slots(runner, [5, 0])
    heads: list[int] = []
    hook = runner.lm_head.register_forward_pre_hook(lambda head, args: heads.append(args[0].shape[1]))
    try:
        logits = runner.step([SequenceChunk.new(opened[0], [9])], [SequenceChunk.new(opened[1], IDS[:40])])
    finally:
        hook.remove()
        close(opened)
    assert heads == [1]
    assert logits.shape[0] == 1


def test_a_mixed_pass_has_no_backward_pass(runners: dict[str, ModelRunner]) -> None:
    runner = runners["llama"]
    opened = slots(runner, [5, 6])
    parts = [RaggedPass([SequenceChunk.new(slot, [9])], runner.rotary_of) for slot in opened]
    run = MixedPass(parts, 1)
    assert run.ids_and_positions.tolist() == [[9, 9], [5, 6]]
    assert run.heat_maps() == []
    assert run.graph_anchor is None
    close(opened)
