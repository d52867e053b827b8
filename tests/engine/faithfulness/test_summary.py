"""Summaries are computed between turns of other requests."""

from __future__ import annotations

from collections.abc import Callable

from gradellm_engine import (
    Engine,
    EvaluationItem,
    EvaluationSettings,
    EvaluationSummary,
    Finished,
    GradEllm,
    Progress,
)
from gradellm_engine.attribution.attention_weights import Attention
from gradellm_engine.methods.random import Random
from support.faithfulness.evaluations import (
    RAW,
    methods,
    run_evaluation,
)

Engines = Callable[..., Engine]


def test_intervals_are_computed_in_two_turns(load: Engines) -> None:
    engine = load("llama")
    settings = EvaluationSettings(methods(GradEllm(), Attention(), Random()), stride=1)
    found = run_evaluation(engine, engine.evaluation_request(RAW, settings, [70, 71]))
    kinds = [type(event) for event in found.output.events]
    after = kinds[len(kinds) - kinds[::-1].index(EvaluationItem) :]
    assert after == [Progress, Progress, EvaluationSummary, Finished]  # one turn a resampling
