"""The memory of passes, and of the tensors that are kept between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from gradellm_engine import (
    Engine,
    EvaluationSettings,
    GradEllm,
    Message,
    PromptInput,
)
from gradellm_engine.core import scheduler as scheduling
from gradellm_engine.faithfulness import evaluation, pass_budget
from gradellm_engine.faithfulness.measurements import UnperturbedStep
from gradellm_engine.methods.cost_model import ModelCost
from gradellm_engine.methods.random import Random
from gradellm_engine.model.runner import ModelRunner
from support.faithfulness.evaluations import (
    COARSE,
    PI_SOFT,
    RAW,
    methods,
    run_evaluation,
)

Engines = Callable[..., Engine]


def test_short_texts_after_a_long_prefix_fit_the_memory(
    path_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sequence of a pass needs a copy of the shared prefix's keys and values, one layer at a time."""
    engine = Engine.load(str(path_of("llama")), threads=1, method_bytes=2**23)
    a_token = engine.model.runner.layer_shapes[0].bytes_per_token
    counts, longest, last_logits = [], [], ModelRunner.last_logits

    def noting(self: ModelRunner, embeddings: Tensor, shapes: Sequence[int], run: Any, *args: Any) -> Tensor:
        counts.append(len(shapes))
        longest.append(run.length + embeddings.shape[1])
        return last_logits(self, embeddings, shapes, run, *args)

    monkeypatch.setattr(ModelRunner, "last_logits", noting)
    monkeypatch.setattr(pass_budget, "FIRST_TOKENS", 10**6)
    monkeypatch.setattr(pass_budget, "PASSES_PER_BATCH", 10**6)
    monkeypatch.setattr(scheduling, "IDLE_EVALUATION_SECONDS", 1e9)
    monkeypatch.setattr(ModelCost, "bytes_of", lambda *args: 1)  # no other memory is limited here
    messages = (Message("system", "Be kind. " * 22), Message("user", "Who i"))
    settings = EvaluationSettings(methods(GradEllm()), samples=40, stride=1)
    request = engine.evaluation_request(PromptInput(messages=messages), settings, [70, 71, 72])
    assert request.pass_budget is not None
    run_evaluation(engine, request)
    assert request.pass_budget.max_sequences / 2 < max(counts) <= request.pass_budget.max_sequences
    assert 2 * max(counts) * max(longest) * a_token <= engine.method_bytes


def test_one_unperturbed_distribution_a_step_is_kept(load: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    retained: list[int] = []

    def noting(P: Tensor, *args: Any) -> UnperturbedStep:
        retained.append(P.untyped_storage().nbytes())
        return UnperturbedStep(P, *args)

    monkeypatch.setattr(evaluation, "UnperturbedStep", noting)
    engine = load("llama")
    settings = EvaluationSettings(methods(Random()), PI_SOFT, COARSE, stride=1)
    run_evaluation(engine, engine.evaluation_request(RAW, settings, [70, 71, 72]))
    assert retained == [engine.info.vocab_size * 4] * 3
