"""Changed texts are made as batches need them: between two turns of others, a bounded number of masks and exponents."""

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
from gradellm_engine.faithfulness import evaluation
from gradellm_engine.faithfulness.evaluation import BATCHES_A_GROUP, DRAWN, MADE_TEXTS, Text
from gradellm_engine.faithfulness.keep_probabilities import retentions
from gradellm_engine.faithfulness.masks import drawn
from gradellm_engine.methods.random import Random
from support.scheduler_harness import run_alone, scheduler_of

PIS = tuple(n / 100 for n in range(1, 100))


@pytest.fixture(scope="module")
def engine(model_path: Callable[[str], Path]) -> Engine:
    return Engine.load(str(model_path("llama")), threads=1)


@pytest.mark.parametrize("prompt", ["aa", "A red fox did not like rain at all, but went out."])
def test_masks_are_made_a_few_at_a_time(engine: Engine, monkeypatch: pytest.MonkeyPatch, prompt: str) -> None:
    """99 shares of 20 samples: 1,980 draws for one step, of which a prompt of two letters has four different texts."""
    settings = EvaluationSettings(
        (EvaluatedMethod("it", GradEllm()), EvaluatedMethod("random", Random())),
        (Metric.PI_SOFT_NS, Metric.PI_SOFT_NC),
        PIS,
        20,
    )
    made, rows = 0, 0
    most = [0, 0]
    zeroed, analyse = Text.zeroed, Request.run_post_hoc

    def making(self: Text, gone: NDArray[np.bool_]) -> Any:
        nonlocal made
        made += 1
        return zeroed(self, gone)

    def drawing(seed: int, step: int, keys: list[Any], num_tokens: int) -> NDArray[np.float64]:
        nonlocal rows
        rows += len(keys) * num_tokens
        return drawn(seed, step, keys, num_tokens)

    def turn(self: Request) -> None:
        nonlocal made, rows
        made = rows = 0
        analyse(self)
        most[:] = max(most[0], made), max(most[1], rows)

    monkeypatch.setattr(Text, "zeroed", making)
    monkeypatch.setattr(evaluation, "drawn", drawing)
    monkeypatch.setattr(Request, "run_post_hoc", turn)
    scheduler = scheduler_of(engine, max_running=1, num_tokens=200)
    stream = engine.evaluation_request(prompt, settings, sampling=Sampling(max_new_tokens=1))
    scheduler.submit(stream)
    summary = None
    while not stream.is_closed:
        for _ in scheduler.step():
            for event in stream.take_events():
                summary = event if isinstance(event, EvaluationSummary) else summary
    assert stream.error is None
    assert summary is not None
    assert summary.num_asked == 2 * 2 * 99 * 20 + 2
    allowance = stream.pass_budget
    assert allowance is not None
    group = BATCHES_A_GROUP * allowance.most // len(prompt)
    assert most[0] <= max(group, MADE_TEXTS) + 2
    assert most[1] <= 2 * DRAWN
    if prompt == "aa":
        assert summary.num_sequences <= 6


def test_many_exponents_are_found_a_few_at_a_time(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "DRAWN", 64)
    monkeypatch.setattr(evaluation, "SHORT_BISECTION", 16)
    sizes: list[int] = []

    def noting(scores: NDArray[np.float64], pis: Any) -> Any:
        sizes.append(len(scores) * len(pis))
        return retentions(scores, pis)

    monkeypatch.setattr(evaluation, "retentions", noting)
    settings = EvaluationSettings((EvaluatedMethod("it", GradEllm()),), (Metric.PI_SOFT_NS,), PIS, 1)
    told = run_alone(engine, engine.evaluation_request("A red fox ran.", settings, sampling=Sampling(max_new_tokens=1)))
    assert told.error is None
    assert max(sizes) <= 64
    assert sum(sizes) == 99 * 14
