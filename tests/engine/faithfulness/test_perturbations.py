"""Perturbed texts are made as batches need them: a bounded number of masks and alphas between two pauses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gradellm_engine import (
    Engine,
    EvaluatedMethod,
    EvaluationSettings,
    EvaluationSummary,
    GradEllm,
    Metric,
    Request,
    Sampling,
)
from gradellm_engine.faithfulness import perturbations
from gradellm_engine.faithfulness.metrics.keep_probabilities import retentions
from gradellm_engine.faithfulness.metrics.masks import uniform_rows
from gradellm_engine.faithfulness.perturbations import MAX_TEXTS, MAX_UNIFORMS
from gradellm_engine.faithfulness.perturbed_text import StepText
from gradellm_engine.methods.random import Random
from support.scheduler_harness import run_alone, scheduler_of

PIS = tuple(n / 100 for n in range(1, 100))


@pytest.fixture(scope="module")
def engine(model_path: Callable[[str], Path]) -> Engine:
    return Engine.load(str(model_path("llama")), threads=1)


@pytest.mark.parametrize("prompt", ["aa", "A red fox did not like rain at all, but went out."])
def test_masks_are_made_a_few_at_a_time(engine: Engine, monkeypatch: pytest.MonkeyPatch, prompt: str) -> None:
    """99 pis of 20 samples are 1,980 masks for one step; a prompt of two letters has four different texts."""
    settings = EvaluationSettings(
        (EvaluatedMethod("it", GradEllm()), EvaluatedMethod("random", Random())),
        (Metric.PI_SOFT_NS, Metric.PI_SOFT_NC),
        PIS,
        20,
    )
    num_texts, rows = 0, 0
    most = [0, 0]
    zeroed, run_post_hoc = StepText.zeroed, Request.run_post_hoc

    def making(self: StepText, removed: NDArray[np.bool_]) -> Any:
        nonlocal num_texts
        num_texts += 1
        return zeroed(self, removed)

    def drawing(seed: int, step: int, keys: list[Any], num_tokens: int) -> NDArray[np.float64]:
        nonlocal rows
        rows += len(keys) * num_tokens
        return uniform_rows(seed, step, keys, num_tokens)

    def turn(self: Request) -> None:
        nonlocal num_texts, rows
        num_texts = rows = 0
        run_post_hoc(self)
        most[:] = max(most[0], num_texts), max(most[1], rows)

    monkeypatch.setattr(StepText, "zeroed", making)
    monkeypatch.setattr(perturbations, "uniform_rows", drawing)
    monkeypatch.setattr(Request, "run_post_hoc", turn)
    scheduler = scheduler_of(engine, max_running=1, num_tokens=200)
    request = engine.evaluation_request(prompt, settings, sampling=Sampling(max_new_tokens=1))
    scheduler.submit(request)
    summary = None
    while not request.is_closed:
        for _ in scheduler.step():
            for event in request.take_events():
                summary = event if isinstance(event, EvaluationSummary) else summary
    assert request.error is None
    assert summary is not None
    assert summary.num_requested == 2 * 2 * 99 * 20 + 2
    budget = request.pass_budget
    assert budget is not None
    assert most[0] <= max(budget.batch_tokens // len(prompt), MAX_TEXTS) + 2
    assert most[1] <= 2 * MAX_UNIFORMS
    if prompt == "aa":
        assert summary.num_sequences <= 6


def test_many_alphas_are_found_a_few_at_a_time(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perturbations, "MAX_UNIFORMS", 64)
    monkeypatch.setattr(perturbations, "SHORT_BISECTION", 16)
    sizes: list[int] = []

    def noting(scores: NDArray[np.float64], pis: Any) -> Any:
        sizes.append(len(scores) * len(pis))
        return retentions(scores, pis)

    monkeypatch.setattr(perturbations, "retentions", noting)
    settings = EvaluationSettings((EvaluatedMethod("it", GradEllm()),), (Metric.PI_SOFT_NS,), PIS, 1)
    output = run_alone(
        engine, engine.evaluation_request("A red fox ran.", settings, sampling=Sampling(max_new_tokens=1))
    )
    assert output.error is None
    assert max(sizes) <= 64
    assert sum(sizes) == 99 * 14
