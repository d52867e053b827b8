"""The emitted text, words, columns and scores: stop texts, resolutions, the largest scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.core.generation_helpers import (
    GREEDY,
    PREFIX,
    PROMPT,
    SAMPLED,
    attribution,
    completion,
    delivered,
    deliveries,
    fields,
    reason,
    row,
    same,
)
from gradellm_engine import (
    AttributionSettings,
    Engine,
    FinishReason,
    GradEllm,
    PromptInput,
    Rectify,
    Resolution,
    Sampling,
    Segment,
    Sources,
)
from gradellm_engine.tokenization.words import WordCounter

ModelPath = Callable[[str], Path]


@deliveries
def test_stop_texts_cut_the_completion(engine: Engine, chunk_size: int | None) -> None:
    settings = delivered(PREFIX, chunk_size)
    full = engine.generate(PROMPT, SAMPLED, settings)
    steps = list(full)
    text = completion(full)
    for begin in range(0, len(text), 1 if chunk_size is None else 5):
        for end in (begin + 1, begin + 2):
            stop = text[begin:end]
            generation = engine.generate(PROMPT, replace(SAMPLED, stop=(stop, "never met")), settings)
            stopped = list(generation)
            at = text.index(stop)
            assert generation.finished is not None
            assert generation.finished.text == text[:at] == "".join(s.text for s in stopped)
            assert generation.finished.stop == stop
            assert reason(generation) is FinishReason.STOP_TEXT
            assert generation.finished.num_completion_tokens == len(stopped)
            assert [s.id for s in stopped] == [s.id for s in steps[: len(stopped)]]
            assert generation.finished.num_attributed_tokens == len(stopped)
            assert all(same(row(a), row(b)) for a, b in zip(stopped, steps, strict=False))


@deliveries
def test_text_held_for_a_stop_text_is_emitted_at_the_end(engine: Engine, chunk_size: int | None) -> None:
    settings = delivered(PREFIX, chunk_size)
    full = list(engine.generate(PROMPT, SAMPLED, settings))
    last = next(s.text for s in reversed(full) if s.text)
    held = list(engine.generate(PROMPT, replace(SAMPLED, stop=(last + "never",)), settings))
    assert fields(held) == fields(full)
    assert all(same(row(a), row(b)) for a, b in zip(held, full, strict=True))


def test_forced_tokens_after_a_stop_text_have_no_text(engine: Engine) -> None:
    forced = engine.tokenize("axbc").ids[1:]
    generation = engine.generate(PROMPT, replace(GREEDY, stop=("x",)), PREFIX, forced_ids=forced, first_attribution=0)
    steps = list(generation)
    assert [s.text for s in steps] == ["a", "", "", ""]
    assert completion(generation) == "a"
    assert reason(generation) is FinishReason.STOP_TEXT


@pytest.mark.parametrize(
    ("forced", "stop", "text"),
    [([64, 259], "<|user|>", "a"), ([64, 65, 259, 66], "b<|user|>c", "a"), ([64, 258], "<|sys", "a")],
)
def test_a_stop_text_may_hold_special_tokens(engine: Engine, forced: list[int], stop: str, text: str) -> None:
    generation = engine.generate("x", Sampling(max_new_tokens=8, stop=(stop,)), forced_ids=forced)
    list(generation)
    finished = generation.finished
    assert finished is not None
    assert (finished.reason, finished.stop, finished.text) == (FinishReason.STOP_TEXT, stop, text)


@pytest.mark.parametrize("sources", Sources)
def test_words_and_segments_sum_their_tokens(engine: Engine, sources: Sources) -> None:
    prompt = PromptInput(prompt=PROMPT, segments=(Segment("who", 20, 33), Segment("first", 0, 4)))
    tokens = list(engine.generate(prompt, SAMPLED, AttributionSettings(sources=sources)))
    for resolution in (Resolution.WORD, Resolution.SEGMENT):
        generation = engine.generate(prompt, SAMPLED, AttributionSettings(sources=sources, resolution=resolution))
        columns = generation.started.sources
        labels = {s.label for s in columns}
        assert labels == (
            {"template", "user", "who", "first"} if resolution is Resolution.SEGMENT else {"", *PROMPT.split()}
        )
        for coarse, fine in zip(generation, tokens, strict=True):
            sums = [row(fine)[list(source.token_indexes)].sum() for source in columns]
            assert torch.allclose(row(coarse)[: len(columns)], torch.stack(sums), rtol=1e-5)
            assert torch.allclose(row(coarse).sum(), row(fine).sum(), rtol=1e-5)


@deliveries
@pytest.mark.parametrize("sources", Sources)
@pytest.mark.parametrize("stop", [(), ("a", "ue", "\ufffd")])
def test_words_are_those_of_the_finished_text(
    engine: Engine, sources: Sources, stop: tuple[str, ...], chunk_size: int | None
) -> None:
    """With any delivery, and resumed; a random model ends in the middle of characters."""
    settings = delivered(AttributionSettings(sources=sources, resolution=Resolution.WORD), chunk_size)
    sampling = replace(SAMPLED, max_new_tokens=24, stop=stop)
    steps = list(engine.generate(PROMPT, sampling, settings))
    counter = WordCounter()
    for step in steps:
        counter.push(step.text, special=step.special)
    counter.finish()
    for step, word in zip(steps, counter.words, strict=True):
        assert step.word == (word if step.text or step.special else None)
    if sources is Sources.PREFIX:  # a column a word
        num_columns = engine.generate(PROMPT, sampling, settings).started.prompt.words[-1] + 1
        assert [step.source_index for step in steps] == [num_columns + word for word in counter.words]
        for step in steps[1:]:
            assert len(row(step)) == num_columns + counter.words[step.index - 1] + 1
    rest = engine.generate(PROMPT, sampling, settings, forced_ids=[step.id for step in steps[:7]])
    assert fields([step for step in rest if step.is_new]) == fields(steps[7:])


@pytest.mark.parametrize("resolution", Resolution)
@deliveries
def test_rows_over_the_prefix_grow_with_their_columns(
    engine: Engine, resolution: Resolution, chunk_size: int | None
) -> None:
    """A row that is emitted late has no columns for later tokens."""
    settings = delivered(AttributionSettings(sources=Sources.PREFIX, resolution=resolution), chunk_size)
    generation = engine.generate(PROMPT, SAMPLED, settings)
    columns = len(generation.started.sources)
    for step in generation:
        assert row(step).shape == (columns,)
        assert step.source_index in (columns - 1, columns)
        columns = max(columns, (step.source_index or 0) + 1)
    assert all(s.source_index is None for s in engine.generate(PROMPT, GREEDY, AttributionSettings()))


def test_top_k_sources_are_the_largest_by_magnitude(engine: Engine) -> None:
    method = GradEllm(rectify=Rectify.NONE)
    full_steps = list(engine.generate(PROMPT, GREEDY, AttributionSettings(method, sources=Sources.PREFIX)))
    for count in (1, 5):
        settings = AttributionSettings(method, sources=Sources.PREFIX, top_k_sources=count)
        for step, full in zip(engine.generate(PROMPT, GREEDY, settings), full_steps, strict=True):
            indexes = attribution(step).source_indexes
            assert indexes is not None
            assert torch.equal(row(step), row(full)[indexes])
            assert row(step).abs().tolist() == sorted(row(full).abs().tolist(), reverse=True)[:count]
    settings = AttributionSettings(method, sources=Sources.PREFIX, top_k_sources=10_000)
    for step, full in zip(engine.generate(PROMPT, GREEDY, settings), full_steps, strict=True):
        assert attribution(step).source_indexes is None
        assert torch.equal(row(step), row(full))
