"""The model as a function of embeddings: batches of whole sequences against Transformers' own, objectives by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gradellm_engine.methods import post_hoc
from gradellm_engine.methods.post_hoc import (
    CompletionContext,
    CompletionModel,
    Objective,
    objective_values,
    prefix_scores,
)
from gradellm_engine.model.families import family_of
from gradellm_engine.passes.base import Target
from gradellm_engine.passes.full_sequence import FullSequenceAttention
from support.methods.reference_case import Case
from support.oracle import relative_error

MakeCase = Callable[..., Case]
TOLERANCE = 1e-5


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "mistral"])
def test_batches_of_full_sequences_equal_single_ones(case: MakeCase, family: str) -> None:
    """With the fused kernel, and with the attention that methods watch."""
    subject = case(family, "float32")
    runner = subject.engine.model.runner
    ids = [[*subject.ids, last] for last in (70, 71, 72)]
    embeddings = torch.stack([runner.embed(sequence) for sequence in ids])
    positions = torch.arange(embeddings.shape[1])
    if hasattr(subject.reference, "set_experts_implementation"):
        subject.reference.set_experts_implementation("eager")
    for watch in (None, lambda index, attended: None):
        with torch.no_grad():
            logits = runner.full_sequence_logits(
                embeddings, positions, positions[-1:], FullSequenceAttention(watch=watch)
            )
        expected = subject.logits(torch.stack([subject.embed(sequence) for sequence in ids])).detach()
        assert relative_error(logits[:, 0], expected) <= TOLERANCE


def naive_objective(logits: list[float], objective: Objective, token_id: int) -> float:
    total = sum(math.exp(logit) for logit in logits)
    match objective:
        case Objective.LOGIT:
            return logits[token_id]
        case Objective.LOG_PROB:
            return logits[token_id] - math.log(total)
        case Objective.PROB:
            return math.exp(logits[token_id]) / total


@pytest.mark.parametrize("objective", Objective)
@pytest.mark.parametrize("contrasts", [(None, None, None), (3, None, 0)])
def test_objectives_equal_naive_ones(normal: Callable[..., Any], objective: Objective, contrasts: Any) -> None:
    """Of each sequence and step: the target's, minus that of the contrast where there is one."""
    logits, ids = normal(1, 2, 3, 5), (4, 0, 0)
    targets = [Target(token_id, contrast) for token_id, contrast in zip(ids, contrasts, strict=True)]
    values = objective_values(logits, targets, objective)
    assert values.shape == (2, 3)
    for sequence, step in ((b, t) for b in range(2) for t in range(3)):
        row, contrast = logits[sequence, step].tolist(), contrasts[step]
        expected = naive_objective(row, objective, ids[step])
        if contrast is not None:
            expected -= naive_objective(row, objective, contrast)
        assert values[sequence, step].item() == pytest.approx(expected, abs=1e-12)


def completion_model(memory: int, num_prompt_tokens: int, num_steps: int) -> CompletionModel:
    """A completion of a model whose passes take 10 bytes a token, and 100 with a graph."""
    context = CompletionContext(
        list(range(num_prompt_tokens + num_steps)), num_prompt_tokens, [Target(i) for i in range(num_steps)]
    )
    runner: Any = None
    return CompletionModel(runner, family_of("llama"), context, memory, lambda T, n, graph: T * (100 if graph else 10))


def test_a_pass_has_as_many_sequences_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sequence is one token shorter than the completion's end: the last token is only predicted."""
    monkeypatch.setattr(post_hoc, "PASS_TOKENS", 100)
    assert completion_model(480, 8, 5).sequences_per_pass() == 4  # 12 tokens, 120 bytes
    assert completion_model(480, 8, 5).sequences_per_pass(graph=True) == 1  # not even one: it runs by itself
    assert completion_model(10**9, 8, 5).sequences_per_pass() == 100 // 12
    assert completion_model(10**9, 200, 5).sequences_per_pass() == 1


def test_a_restricted_completion_reads_up_to_its_last_step() -> None:
    model = completion_model(480, 8, 5)
    some = model.restricted([1, 3])
    assert list(some.completion.steps) == [1, 3]
    assert (some.completion.num_steps, some.completion.num_tokens, some.completion.positions) == (2, 11, [8, 10])
    assert some.completion.targets == [Target(1), Target(3)]
    assert some.restricted([3]).completion.targets == [Target(3)]
    assert (list(model.completion.steps), model.completion.num_tokens) == ([0, 1, 2, 3, 4], 12)
    assert model.completion.positions == [7, 8, 9, 10, 11]


def test_scores_of_the_prompt_are_0_for_generated_tokens() -> None:
    completion = completion_model(1, 3, 4).completion
    assert prefix_scores(torch.tensor([1.0, 2.0, 3.0]), completion, 2).tolist() == [1, 2, 3, 0, 0]
    assert prefix_scores(torch.tensor([1.0, 2.0, 3.0]), completion, 0).tolist() == [1, 2, 3]
