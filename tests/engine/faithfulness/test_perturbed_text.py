"""Perturbed texts, down to an empty one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gradellm_engine import (
    Engine,
    EvaluatedMethod,
    EvaluationSettings,
    Metric,
    PromptInput,
    Removal,
)
from gradellm_engine.faithfulness.perturbed_text import PerturbedText, StepText
from support.faithfulness.evaluations import (
    COARSE,
    TOLERANCE,
    compare,
    own_scores,
    run_evaluation,
)
from support.faithfulness.reference import Reference

Engines = Callable[..., Engine]
TEXT = StepText(0, (7, 8, 9, 10), np.array([1, 3]), np.array([6, 8]))
FIRST, BOTH = np.array([True, False]), np.array([True, True])


def test_zeroed_tokens_keep_their_positions() -> None:
    assert TEXT.zeroed(FIRST) == PerturbedText((7, 8, 9, 10), b"\0\1\0\0")
    assert TEXT.without(BOTH, Removal.ZERO, 0) == PerturbedText((7, 8, 9, 10), b"\0\1\0\1")


def test_removed_tokens_are_cut_out_or_padded() -> None:
    assert TEXT.without(BOTH, Removal.REMOVE, 0) == PerturbedText((7, 9), bytes(2))
    assert TEXT.without(FIRST, Removal.PAD, 5) == PerturbedText((7, 5, 9, 10), bytes(4))


def test_an_empty_text_keeps_its_last_token_zeroed() -> None:
    text = StepText(0, (7, 8), np.array([0, 1]), np.array([0, 1]))
    assert text.without(BOTH, Removal.REMOVE, 0) == PerturbedText((8,), b"\1")


def test_all_of_a_prompt_may_be_removed(load: Engines, reference: Callable[[str], Reference]) -> None:
    """Where no token would be left, the last one stays, zeroed."""
    engine, prompt_input = load("gpt2"), PromptInput(prompt_ids=(70, 71, 72))
    row = own_scores(2, 3)
    settings = EvaluationSettings(
        (EvaluatedMethod("own", rows=row),), (Metric.INSERTION, Metric.DELETION, Metric.PI_SOFT_NS), COARSE
    )
    found = run_evaluation(engine, engine.evaluation_request(prompt_input, settings, [73]))
    expected = reference("gpt2").evaluate(engine.tokenize(prompt_input), [73], settings, {("own", 0): row[0]})
    assert found.summary.num_perturbable == 3
    assert compare(found.items, expected)[0] <= TOLERANCE
