"""Captured steps against one chunk after the other, in float64; captured on a CPU as a tape of operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gradellm_engine.compilation.graph_cache import GraphLimits, pad_to_bucket
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.params import Loosening, Rotary
from gradellm_engine.passes.base import ExplainSpec, SequenceChunk, Target
from gradellm_engine.passes.batched import StepShape
from support.fake_cuda_graphs import TapeCapturer
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


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_replayed_steps_equal_those_run_call_by_call(runner: Any, family: str) -> None:
    """Other tokens, lengths, places, numbers of sequences and targets than those that were recorded."""
    model: ModelRunner = runner(family)
    recorder = TapeCapturer()
    model.use_graphs(recorder)
    assert model.cuda_graphs is not None
    for switches in (None, *SWITCHES[:4]):
        for domains in (False, True):
            if domains and (switches is None or switches.loosening is Loosening.NONE):
                continue
            expected_number = recorder.num_captured + (1 if switches is None else 2)
            for lengths in (LENGTHS, (30, 2, 7, 1), (9, 9, 40, 1)):
                chunks = filled(model, lengths)
                if switches is not None:
                    chunks = explained(chunks, switches, model.num_layers, domains=domains)
                assert_close(outcome(model, chunks), one_by_one(model, chunks))
                if switches is not None:  # the graph of the step before is not in the way
                    assert_close(outcome(model, chunks), one_by_one(model, chunks))
            assert recorder.num_captured == expected_number  # one shape took them all
    model.cuda_graphs = None


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2"])
def test_replayed_chunks_equal_those_of_parts(runner: Any, family: str) -> None:
    """Tokens that are read once more: fewer than were recorded, and of sequences of any length."""
    model: ModelRunner = runner(family)
    recorder = TapeCapturer()
    for switches in (s for s in SWITCHES if model.rotaries or s.rotary is Rotary.ROTATED):
        explain = ExplainSpec(replace(switches, layers=switches.selected_layers(model.num_layers)))
        for counts in ((4, 2, 4), (1, 3, 4), (3,)):
            replayed, targets = [], []
            for chunk, count in zip(filled(model, (12, 4, 23)), counts, strict=False):
                model.step([chunk])
                end = chunk.slot.length
                replayed.append(SequenceChunk.replay(chunk.slot, end - count, end, explain))
                targets += [Target(seed + 3, None if seed % 2 else 5) for seed in range(count)]
            expected = model.replay(replayed, targets)
            model.cuda_graphs = None
            model.use_graphs(recorder)
            before = recorder.num_captured
            for _ in range(2):
                actual = model.replay(replayed, targets)
                assert recorder.num_captured == before + 1
                for actual_row, expected_row in zip(actual, expected, strict=True):
                    assert actual_row.shape == expected_row.shape
                    assert expected_row.any()
                    assert torch.allclose(actual_row, expected_row, rtol=1e-9, atol=1e-12)
            model.cuda_graphs = None


def test_long_replays_equal_the_reference(runner: Any) -> None:
    model: ModelRunner = runner("llama")
    model.use_graphs(TapeCapturer())
    (chunk,) = filled(model, (2,))
    model.step([chunk])
    explain = ExplainSpec(replace(SWITCHES[0], layers=(0, 1, 2)))
    (scores,) = model.replay([SequenceChunk.replay(chunk.slot, 0, 3, explain)], [Target(1), Target(2), Target(3)])
    assert scores.shape == (3, 3)
    assert len(model.cuda_graphs or ()) == 1  # the step's
    model.cuda_graphs = None


def test_fewer_sequences_than_rows(runner: Any) -> None:
    model: ModelRunner = runner("llama")
    model.use_graphs(TapeCapturer())
    for lengths in ((3, 4, 5, 6, 7), (3, 40, 5, 6, 7, 8), (3, 40, 5, 6, 7)):
        chunks = filled(model, lengths)
        assert_close(outcome(model, chunks), one_by_one(model, chunks))
        targets = explained(chunks[:4], SWITCHES[0], model.num_layers) + chunks[4:]
        assert_close(outcome(model, targets), one_by_one(model, targets))
    assert len(model.cuda_graphs or ()) == 2
    model.cuda_graphs = None


def test_shapes_are_rounded_up() -> None:
    def rounded(rows: int, width: int) -> tuple[int, int]:
        shape = pad_to_bucket(StepShape(rows, 1, width, is_new=True, switches=None, has_domains=False))
        return shape.num_rows, shape.width

    assert rounded(1, 1) == (1, 128)
    assert rounded(5, 129) == (6, 192)
    assert rounded(8, 192) == (8, 192)
    assert rounded(9, 193) == (12, 256)
    assert rounded(17, 5000) == (24, 6144)


class Refusing(TapeCapturer):
    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")


def test_steps_that_cannot_be_captured_run_eagerly(runner: Any, caplog: pytest.LogCaptureFixture) -> None:
    model: ModelRunner = runner("llama")
    model.use_graphs(Refusing())
    chunks = explained(filled(model, LENGTHS), SWITCHES[0], model.num_layers)
    for _ in range(2):
        assert_close(outcome(model, chunks), one_by_one(model, chunks))
    assert [record.getMessage() for record in caplog.records] == [
        "Graphs disabled: decode steps run eagerly: CUDA error: operation not permitted when stream is capturing"
    ]
    model.cuda_graphs = None


class Crowded(TapeCapturer):
    """There is no memory to record the first steps: the error itself, or what a broken-off recording makes of it."""

    num_refused = 0

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        if self.num_refused == 2:
            return super().capture(run)
        self.num_refused += 1
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            if self.num_refused == 2:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


def test_capture_is_retried_after_running_out_of_memory(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradellm_engine.compilation.graph_cache.STEPS_BEFORE_RETRY", 1)
    model: ModelRunner = runner("llama")
    recorder = Crowded()
    model.use_graphs(recorder)
    assert model.cuda_graphs is not None
    chunks = explained(filled(model, LENGTHS), SWITCHES[0], model.num_layers)
    for refused, recorded in ((1, 0), (1, 0), (2, 0), (2, 0), (2, 1), (2, 1)):
        assert_close(outcome(model, chunks), one_by_one(model, chunks))
        assert (recorder.num_refused, len(model.cuda_graphs)) == (refused, recorded)
    assert model.cuda_graphs.is_possible
    model.cuda_graphs = None


def test_the_recording_not_used_for_longest_is_given_up(runner: Any) -> None:
    model: ModelRunner = runner("llama")
    recorder = TapeCapturer()
    model.use_graphs(recorder, GraphLimits(max_graphs=2))
    for count, expected in ((1, 1), (2, 2), (1, 2), (3, 3), (1, 3), (2, 4)):
        outcome(model, filled(model, (4,) * count))
        assert recorder.num_captured == expected
    model.cuda_graphs = None


def test_without_a_gpu_nothing_is_recorded(runner: Any) -> None:
    model: ModelRunner = runner("llama")
    model.use_graphs()
    assert model.cuda_graphs is None
