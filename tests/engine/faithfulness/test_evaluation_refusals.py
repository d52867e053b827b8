"""Evaluations that are refused before any work, or end with an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gradellm_engine import (
    ComputationError,
    Engine,
    EvaluatedMethod,
    EvaluationSettings,
    GradEllm,
    InvalidRequestError,
    Metric,
    Perturb,
    PromptInput,
    Removal,
    Sampling,
)
from gradellm_engine.core import post_hoc_runner
from gradellm_engine.faithfulness.metrics.curves import PIS
from gradellm_engine.methods.gradients.saliency import Saliency
from gradellm_engine.methods.perturbation.occlusion import Occlusion
from gradellm_engine.methods.random import Random
from gradellm_engine.model.runner import ModelRunner
from support.faithfulness.evaluations import (
    COARSE,
    RAW,
    methods,
    own_scores,
    run_evaluation,
)
from support.scheduler_harness import run_alone
from support.tiny_models import save_random_model

Engines = Callable[..., Engine]


ROW = own_scores(0, 29)
OWN = (EvaluatedMethod("own", rows=ROW),)
SOUND = EvaluationSettings(OWN, (Metric.PI_SOFT_NS,), COARSE)


METHOD = replace(SOUND, methods=methods(GradEllm()))


@pytest.mark.parametrize(
    ("field", "prompt_input", "settings", "completion", "message"),
    [
        (
            "scores",
            RAW,
            replace(SOUND, methods=(EvaluatedMethod("own", rows={0: [0.0] * 28}),)),
            [70],
            "28 scores at step 0",
        ),
        ("scores", RAW, replace(SOUND, methods=(EvaluatedMethod("own", rows={0: [0.0] * 30}),)), [70], "needed: 29"),
        ("scores", RAW, replace(SOUND, stride=1), [70, 71], "no row for step 1; steps 0, 1 are"),
        ("scores", RAW, replace(SOUND, stride=2), list(range(70, 77)), "no row for step 2; steps 0, 2 .. 6 are"),
        ("scores", RAW, replace(SOUND, methods=(EvaluatedMethod("own"),)), [70], "no row for step 0"),
        (
            "scores",
            RAW,
            replace(
                SOUND, methods=(EvaluatedMethod("own", rows=own_scores(0, 29, 29)),), stride=1, perturb=Perturb.PREFIX
            ),
            [70, 71],
            "needed: 30",
        ),
        ("scores", RAW, SOUND, None, "completion"),
        ("offset", RAW, replace(METHOD, offset=2), [70, 71], "2"),
        ("offset", RAW, replace(METHOD, offset=8), None, "8"),
        ("labels", RAW, replace(SOUND, labels=("yes", "no")), [70], "or a completion"),
        ("labels[2]", RAW, replace(SOUND, labels=("yes", "no", "nay")), None, "'nay' and 'no' begin with the same"),
        ("labels[1]", RAW, replace(SOUND, labels=("yes", "")), None, "empty"),
        ("removal", RAW, replace(METHOD, metrics=(Metric.DELETION,), removal=Removal.PAD), None, "no padding token"),
        (
            "samples",
            RAW,
            replace(
                METHOD,
                methods=tuple(EvaluatedMethod(str(i), Random()) for i in range(60)),
                samples=1000,
                stride=1,
                pis=PIS,
            ),
            None,
            "limit is 1,000,000",
        ),
        (
            "samples",
            "a" * 240,
            replace(METHOD, methods=tuple(EvaluatedMethod(str(i), Random()) for i in range(20)), samples=1000, pis=PIS),
            [70],
            "tokens; the limit is 50,000,000",
        ),
        ("completion", RAW, METHOD, [], "at least one"),
        ("completion_ids[1]", RAW, METHOD, [70, 300], "vocabulary"),
        ("attribution.layers", RAW, replace(METHOD, methods=methods(GradEllm(layers=4))), None, "3"),
        (
            "attribution.baseline_ids",
            RAW,
            replace(METHOD, methods=methods(Occlusion(baseline_ids=(1, 2)))),
            None,
            "are 2 tokens",
        ),
    ],
)
def test_an_evaluation_is_refused_before_any_work(
    load: Engines,
    monkeypatch: pytest.MonkeyPatch,
    field: str,
    prompt_input: PromptInput | str,
    settings: EvaluationSettings,
    completion: list[int] | None,
    message: str,
) -> None:
    engine = load("llama")
    assert engine.model_cost.num_layers == 3  # measured once, by running the model
    for name in ("prefill", "step", "logits", "explained_pass", "full_sequence_logits", "last_logits"):
        monkeypatch.setattr(ModelRunner, name, lambda *args: pytest.fail("the model ran"))
    if settings.methods is OWN and completion is None and field != "scores" and not settings.labels:
        completion = [70]
    with pytest.raises(InvalidRequestError) as caught:
        engine.evaluate(prompt_input, settings, completion, Sampling(max_new_tokens=8))
    assert caught.value.field == field
    assert message in caught.value.description
    assert not engine.scheduler.has_work()


def test_a_method_that_does_not_fit_is_refused(path_of: Callable[[str], Path]) -> None:
    engine = Engine.load(str(path_of("llama")), threads=1, method_bytes=2**16)
    with pytest.raises(InvalidRequestError) as caught:
        engine.evaluation_request(RAW, replace(METHOD, methods=methods(Saliency())))
    assert caught.value.field == "attribution.method"
    assert "bytes" in caught.value.description
    # Perturbed texts run one a pass then.
    found = run_evaluation(engine, engine.evaluation_request(RAW, METHOD, [70]))
    assert found.summary.num_sequences > 2


def test_labels_without_an_embedding_are_refused(tmp_path: Path) -> None:
    """A tokenizer may have more tokens than its model."""
    engine = Engine.load(str(save_random_model(tmp_path, vocab_size=200)), threads=1)
    settings = replace(METHOD, labels=("yes", " no"))
    with pytest.raises(InvalidRequestError) as caught:
        engine.evaluation_request(PromptInput(prompt_ids=(70, 71)), settings)
    assert caught.value.field == "labels[1]"
    assert "vocabulary ends at 199" in caught.value.description


def test_a_completion_that_ends_before_the_first_evaluated_step(load: Engines) -> None:
    engine = load("llama")
    every = frozenset(range(engine.info.vocab_size))
    ending = Engine(replace(engine.model, end_ids=every))
    output = run_alone(
        ending, ending.evaluation_request(RAW, replace(METHOD, offset=2), None, Sampling(max_new_tokens=8))
    )
    assert isinstance(output.error, InvalidRequestError)
    assert output.error.field == "offset"
    assert "1 tokens has steps 0 to 0" in str(output.error)
    assert len(output.ids) == 1
    assert output.finished is None


def test_scores_that_are_not_finite_end_the_evaluation(load: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load("llama")

    def broken(*args: Any) -> Iterator[Any]:
        yield 0, torch.full((29,), torch.nan)

    monkeypatch.setattr(post_hoc_runner, "scores_at", broken)
    output = run_alone(engine, engine.evaluation_request(RAW, METHOD, [70]))
    assert isinstance(output.error, ComputationError)
    assert "grad_ellm 0" in str(output.error)
