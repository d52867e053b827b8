"""Perturbed texts, down to an empty one."""

from __future__ import annotations

from collections.abc import Callable

from gradellm_engine import (
    Engine,
    EvaluatedMethod,
    EvaluationSettings,
    Metric,
    PromptInput,
)
from support.faithfulness.evaluations import (
    COARSE,
    TOLERANCE,
    compare,
    own_scores,
    run_evaluation,
)
from support.faithfulness.reference import Reference

Engines = Callable[..., Engine]


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
