"""A request's passes: explained at once, late or not at all, in prefill chunks of any size, with broken numbers."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.core.generation_helpers import (
    GREEDY,
    PREFIX,
    PROMPT,
    SAMPLED,
    attribution,
    clear_kv_cache,
    delivered,
    deliveries,
    fields,
    row,
    same,
)
from gradellm_engine import (
    AttributionSettings,
    ComputationError,
    Contrast,
    Engine,
    GradEllm,
    Message,
    NormaliseOver,
    PromptInput,
    Rectify,
    Resolution,
    Role,
    Sampling,
    Sources,
)
from gradellm_engine.attention.ops import AttentionState
from gradellm_engine.core.scheduling.pass_timings import MAX_PREFILL_CHUNK_TOKENS
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.explained_pass import ExplainedPass
from gradellm_engine.passes.ragged import RaggedPass
from support.oracle import relative_error

ModelPath = Callable[[str], Path]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    "method",
    [GradEllm(), GradEllm.preset("knockout", layers=1), GradEllm.preset("grad_eclip")],
    ids=["paper", "knockout", "grad_eclip"],
)
@deliveries
def test_explaining_changes_no_token(
    engine: Engine, sampling: Sampling, method: GradEllm, chunk_size: int | None
) -> None:
    plain = list(engine.generate(PROMPT, sampling))
    explained = list(engine.generate(PROMPT, sampling, delivered(AttributionSettings(method), chunk_size)))
    assert fields(explained) == fields(plain)
    assert [s.logprob for s in explained] == [s.logprob for s in plain]  # to the last bit
    assert all(s.attribution is None for s in plain)
    assert all(row(s).shape == (len(engine.tokenize(PROMPT).tokens),) for s in explained)


@deliveries
def test_late_scores_are_the_same(engine: Engine, chunk_size: int | None) -> None:
    """Scores explain a token by its prefix, however many tokens have followed it."""
    for settings in (PREFIX, replace(PREFIX, resolution=Resolution.WORD, contrast=Contrast(runner_up=True))):
        at_once = list(engine.generate(PROMPT, SAMPLED, settings))
        late = list(engine.generate(PROMPT, SAMPLED, delivered(settings, chunk_size)))
        assert fields(late) == fields(at_once)
        for a, b in zip(late, at_once, strict=True):
            assert row(a).shape == row(b).shape
            assert same(row(a), row(b))
            assert attribution(a).contrast_token_id == attribution(b).contrast_token_id


@deliveries
def test_targets_and_contrasts_are_reported(engine: Engine, chunk_size: int | None) -> None:
    at_once = delivered(AttributionSettings(), chunk_size)
    target = replace(at_once, target_token_id=7, contrast=Contrast(token_id=9))
    assert {
        (attribution(s).target_token_id, attribution(s).contrast_token_id)
        for s in engine.generate(PROMPT, GREEDY, target)
    } == {(7, 9)}
    for step in engine.generate(PROMPT, SAMPLED, at_once):
        assert (attribution(step).target_token_id, attribution(step).contrast_token_id) == (step.id, None)
    text = replace(at_once, contrast=Contrast(text="z"))
    assert attribution(next(iter(engine.generate(PROMPT, GREEDY, text)))).contrast_token_id == ord("z") - 33
    for step in engine.generate(
        PROMPT, replace(SAMPLED, num_alternatives=2), replace(at_once, contrast=Contrast(runner_up=True))
    ):
        assert attribution(step).contrast_token_id == next(a.id for a in step.alternatives if a.id != step.id)


@deliveries
def test_a_contrast_is_a_difference_of_logits(engine: Engine, chunk_size: int | None) -> None:
    """Unrectified scores are linear in the target; a token contrasted with itself scores 0."""
    method = GradEllm(rectify=Rectify.NONE)

    def first(target: int, contrast: int | None = None) -> Tensor:
        settings = AttributionSettings(
            method, target_token_id=target, contrast=None if contrast is None else Contrast(token_id=contrast)
        )
        return row(next(iter(engine.generate(PROMPT, GREEDY, delivered(settings, chunk_size))))).double()

    assert relative_error(first(7, 9), first(7) - first(9)) <= 1e-4
    assert not first(7, 7).any()


@deliveries
def test_the_prompt_s_scores_are_the_same_with_and_without_the_prefix(engine: Engine, chunk_size: int | None) -> None:
    prompt = list(engine.generate(PROMPT, SAMPLED, delivered(AttributionSettings(), chunk_size)))
    prefix = list(engine.generate(PROMPT, SAMPLED, delivered(PREFIX, chunk_size)))
    assert all(torch.equal(row(a), row(b)[: len(row(a))]) for a, b in zip(prompt, prefix, strict=True))


def test_normalising_over_the_user_s_text_leaves_the_rest_at_zero(engine: Engine) -> None:
    prompt = PromptInput(messages=(Message("system", "Be nice."), Message("user", "a fox")))
    settings = AttributionSettings(GradEllm(normalise_over=NormaliseOver.USER), sources=Sources.PREFIX)
    generation = engine.generate(prompt, GREEDY, settings)
    is_user = torch.tensor([t.role is Role.USER and not t.special for t in generation.started.prompt.tokens])
    assert is_user.sum() == 5
    for step in generation:
        assert not row(step)[: len(is_user)][~is_user].any()
        assert not row(step)[len(is_user) :].any()
        assert row(step)[: len(is_user)][is_user].any()


def test_the_prefill_chunk_size_changes_no_result(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    full = list(engine.generate(PROMPT, GREEDY, AttributionSettings(GradEllm.preset("grad_eclip"))))
    for chunk in (1, 7):
        monkeypatch.setitem(MAX_PREFILL_CHUNK_TOKENS, "cpu", chunk)
        clear_kv_cache(engine)
        generation = engine.generate(PROMPT, GREEDY, AttributionSettings(GradEllm.preset("grad_eclip")))
        silent = 0
        while not (first_steps := generation.advance()):
            silent += 1
        # The pass that ends the prompt gives the first token.
        assert silent == math.ceil((len(generation.started.prompt.tokens) - 1) / chunk) - 1
        steps = first_steps + list(generation)
        assert fields(steps) == fields(full)
        for a, b in zip(steps, full, strict=True):
            assert relative_error(row(a), row(b).double()) <= 1e-5


@deliveries
def test_the_graph_of_a_pass_is_freed_with_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, chunk_size: int | None
) -> None:
    """Without the garbage collector: graphs in reference cycles would fill a GPU before it runs."""
    passes: list[weakref.ref[ExplainedPass]] = []
    explained_pass = ModelRunner.explained_pass

    def watched(self: ModelRunner, *args: Any) -> ExplainedPass:
        explained = explained_pass(self, *args)
        passes.append(weakref.ref(explained))
        return explained

    monkeypatch.setattr(ModelRunner, "explained_pass", watched)
    settings = delivered(AttributionSettings(GradEllm.preset("grad_eclip")), chunk_size)
    generation = engine.generate(PROMPT, replace(GREEDY, max_new_tokens=4), settings)
    gc.collect()
    gc.disable()
    try:
        for step in generation:
            assert passes[-1]() is None
            assert not row(step).requires_grad
            assert not any(type(o) is AttentionState for o in gc.get_objects())
    finally:
        gc.enable()
    assert passes
    assert all(p.grad is None and not p.requires_grad for _, p in engine.model.runner.named_parameters())


def test_a_prompt_of_one_token(engine: Engine) -> None:
    (step, *_) = engine.generate(PromptInput(prompt_ids=(256,)), GREEDY, AttributionSettings())
    assert row(step).tolist() == [0.0]  # nothing to compare it with: maximum and minimum are one
    unloosened = AttributionSettings(GradEllm.preset("unloosened"))
    assert next(iter(engine.generate(PromptInput(prompt_ids=(256,)), GREEDY, unloosened))).attribution is not None


def test_weights_that_become_nan_fail_running_requests(model_path: ModelPath) -> None:
    engine = Engine.load(str(model_path("llama")))
    weight = dict(engine.model.runner.named_parameters())["model.layers.1.mlp.down_proj.weight"]
    original = weight.clone()
    expected = list(engine.generate(PROMPT, GREEDY, PREFIX))
    generation = engine.generate(PROMPT, GREEDY, PREFIX)
    steps = [next(iter(generation))]
    weight.data.fill_(math.nan)
    with pytest.raises(ComputationError, match="not finite at step 1"):
        steps += generation
    assert generation.advance() == []  # it is over, and not taken up half way
    assert list(generation) == []
    assert generation.finished is None
    for broken in (engine.generate(PROMPT, GREEDY), engine.attribute(PROMPT, "x")):
        with pytest.raises(ComputationError, match="step 0"):
            list(broken)
    weight.data.copy_(original)
    again = list(engine.generate(PROMPT, GREEDY, PREFIX))
    assert fields(again) == fields(expected)
    assert all(same(row(a), row(b)) for a, b in zip(again, expected, strict=True))


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_scores_that_are_not_finite_fail_the_request(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, chunk_size: int | None
) -> None:
    monkeypatch.setattr(RaggedPass, "heat_maps", lambda self: [torch.tensor([[1.0, math.inf]])])
    with pytest.raises(ComputationError, match="attribution of token 0 is not finite"):
        list(engine.generate("a", GREEDY, delivered(AttributionSettings(), chunk_size)))


def test_other_dtypes_are_explained_like_float32(model_path: ModelPath) -> None:
    path = str(model_path("demo"))
    single = Engine.load(path, dtype="float32")
    ids = [s.id for s in single.generate(PROMPT, Sampling(max_new_tokens=4))]
    expected = [row(s).double() for s in single.attribute(PROMPT, ids)]
    for dtype, tolerance in (("float64", 1e-4), ("bfloat16", 0.3)):
        other = Engine.load(path, dtype=dtype)
        for step, wanted in zip(other.attribute(PROMPT, ids), expected, strict=True):
            assert relative_error(row(step), wanted) <= tolerance
            assert row(step).dtype in (torch.float32, torch.float64)
