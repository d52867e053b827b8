"""What evaluations guarantee: limits at pi 0 and 1, and independence of batches, order and other requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from gradellm_engine import (
    Engine,
    EvaluatedMethod,
    EvaluationSettings,
    GradEllm,
    Metric,
    Removal,
    Request,
    Sampling,
)
from gradellm_engine.core import post_hoc_runner
from gradellm_engine.core import scheduler as scheduling
from gradellm_engine.faithfulness import pass_budget
from gradellm_engine.methods.gradients.saliency import Saliency
from gradellm_engine.methods.random import Random
from support.faithfulness.evaluations import (
    CHAT,
    COARSE,
    PERTURBING,
    PI_SOFT,
    RAW,
    EvaluationRun,
    largest_difference,
    methods,
    run_evaluation,
)
from support.scheduler_harness import run, scheduler_of

Engines = Callable[..., Engine]


ROUNDING = 1e-5
KINDS = ("random", "half zero", "one hot", "constant")
kinds, seeds = st.sampled_from(KINDS), st.integers(0, 2**32)
lengths = st.sampled_from([1, 2, 9])  # of the raw prompt, in tokens
few = examples(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])


def score_row(kind: str, seed: int, length: int) -> list[float]:
    """Scores of `length` tokens."""
    rng = np.random.default_rng(seed)
    row = rng.random(length)
    match kind:
        case "half zero":
            row[rng.permutation(length)[: length // 2]] = 0
        case "one hot":
            row = np.eye(length)[rng.integers(length)]
        case "constant":
            row[:] = row[0]
    return [float(score) for score in row]


def caller_scores(name: str, kind: str, seed: int, length: int) -> EvaluatedMethod:
    """Scores of the caller's own for a raw prompt of BOS and `length` tokens."""
    return EvaluatedMethod(name, rows={0: [0.0, *score_row(kind, seed, length)]})


@few
@given(kinds, seeds, lengths)
def test_limits_at_pi_0_and_1(load: Engines, kind: str, seed: int, length: int) -> None:
    engine = load("llama")
    settings = EvaluationSettings((caller_scores("own", kind, seed, length),), PI_SOFT, (1e-6, 1 - 1e-6), seed=seed)
    found = run_evaluation(engine, engine.evaluation_request(RAW[:length], settings, [70]))
    for metric in PI_SOFT:
        nothing, everything = found.samples("own", metric)[0]
        assert nothing == pytest.approx(np.zeros(3), abs=ROUNDING)
        assert everything == pytest.approx(np.ones(3), abs=ROUNDING)
    # Two texts, run once each, in addition to P and P_0.
    assert found.summary.num_sequences == 4
    assert found.summary.num_requested == 2 + 2 * 2 * 3


@few
@given(kinds, seeds, lengths)
def test_equal_texts_run_once(load: Engines, kind: str, seed: int, length: int) -> None:
    """Two methods with equal scores run as many texts as one."""
    engine = load("llama")
    single = EvaluationSettings((caller_scores("own", kind, seed, length),), PI_SOFT, COARSE, seed=seed)
    both = replace(single, methods=(*single.methods, replace(single.methods[0], name="other")))
    alone, together = (
        run_evaluation(engine, engine.evaluation_request(RAW[:length], settings, [70])) for settings in (single, both)
    )
    assert together.summary.num_sequences == alone.summary.num_sequences
    assert together.summary.num_requested == 2 * alone.summary.num_requested - 2
    assert alone.summary.num_sequences <= alone.summary.num_requested
    for metric in PI_SOFT:
        assert (together.samples("own", metric) == together.samples("other", metric)).all()
    assert largest_difference(alone, together) <= ROUNDING
    assert (found := together.samples("own", Metric.PI_SOFT_NS)).min() >= 0
    assert found.max() <= 1 + ROUNDING


@few
@given(kinds, seeds, lengths, st.sampled_from([(1, 1), (64, 7), (10**6, 10**6)]))
def test_results_do_not_depend_on_the_size_of_passes(
    load: Engines, monkeypatch: pytest.MonkeyPatch, kind: str, seed: int, length: int, sizes: tuple[int, int]
) -> None:
    engine = load("mistral")
    settings = EvaluationSettings((caller_scores("own", kind, seed, length),), PERTURBING, COARSE, seed=seed)
    expected = run_evaluation(engine, engine.evaluation_request(RAW[:length], settings, [70]))
    with monkeypatch.context() as patched:
        patched.setattr(post_hoc_runner, "MAX_EVALUATION_PASS_TOKENS", {"cpu": sizes[0]})
        patched.setattr(pass_budget, "FIRST_TOKENS", sizes[1])
        found = run_evaluation(engine, engine.evaluation_request(RAW[:length], settings, [70]))
    assert largest_difference(found, expected) <= ROUNDING
    assert found.summary.num_sequences == expected.summary.num_sequences


@few
@given(kinds, kinds, seeds, lengths)
def test_results_do_not_depend_on_other_methods_or_their_order(
    load: Engines, kind: str, other: str, seed: int, length: int
) -> None:
    engine = load("llama")
    own = caller_scores("own", kind, seed, length)
    other_settings = (
        caller_scores("other", other, seed + 1, length),
        EvaluatedMethod("random", Random()),
        EvaluatedMethod("it", GradEllm()),
    )
    metrics = (*PI_SOFT, Metric.SOFT_NS, Metric.DELETION)
    alone, first, last = (
        run_evaluation(
            engine, engine.evaluation_request(RAW[:length], EvaluationSettings(all_, metrics, COARSE, seed=seed), [70])
        )
        for all_ in ((own,), (own, *other_settings), (*reversed(other_settings), own))
    )
    assert largest_difference(alone, first) <= ROUNDING
    assert largest_difference(first, last, ("own", "other", "random", "it")) <= ROUNDING
    assert [item.name for item in first.items[:: len(metrics)]] == ["own", "other", "random", "it"]


def test_equal_seeds_give_equal_results_and_others_do_not(load: Engines) -> None:
    engine = load("llama")

    def found(**changes: Any) -> EvaluationRun:
        settings = EvaluationSettings((caller_scores("own", "random", 1, 12),), PI_SOFT, COARSE)
        return run_evaluation(engine, engine.evaluation_request(RAW[:12], replace(settings, **changes), [70]))

    first, again, other = found(), found(), found(seed=1)
    assert largest_difference(first, again) <= ROUNDING
    assert abs(first.samples("own", Metric.PI_SOFT_NS) - other.samples("own", Metric.PI_SOFT_NS)).max() > 0.01
    # More pis and more samples do not change the samples of the first ones.
    more = found(pis=(0.1, 0.2, 0.35, 0.9), samples=5)
    expected, longer = (each.samples("own", Metric.PI_SOFT_NC)[0] for each in (first, more))
    assert longer[[0, 2, 3], :3] == pytest.approx(expected, abs=ROUNDING)


def test_results_do_not_depend_on_other_requests(load: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load("mistral")
    monkeypatch.setattr(scheduling, "STEPS_PER_EVALUATION_BATCH", 2)
    settings = EvaluationSettings(methods(GradEllm(), Saliency(), Random()), PERTURBING, COARSE, stride=1)

    def request() -> Request:
        return engine.evaluation_request(CHAT, settings, [70, 71, 72])

    expected = run_evaluation(engine, request())
    requests = [
        request(),
        *(engine.generation_request(RAW[seed:], Sampling(max_new_tokens=40, seed=seed)) for seed in range(2)),
        request(),
    ]
    outputs = run(scheduler_of(engine, max_running=4, num_tokens=500), requests)
    names = [each.name for each in settings.methods]
    for found in (EvaluationRun(outputs[0]), EvaluationRun(outputs[3])):
        assert largest_difference(found, expected, names) <= ROUNDING


def test_a_step_with_a_small_baseline_is_skipped_and_counted(load: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load("llama")
    runner = engine.model.runner
    monkeypatch.setattr(runner, "embed", lambda ids: torch.zeros(len(ids), 64))
    settings = EvaluationSettings(
        (caller_scores("own", "random", 1, 5),), (*PI_SOFT, Metric.DELETION), removal=Removal.ZERO
    )
    found = run_evaluation(engine, engine.evaluation_request(RAW[:5], settings, [70]))
    assert found.summary.skipped == found.summary.steps == (0,)
    assert [item.metric for item in found.items] == [Metric.DELETION]
    assert [each.metric for each in found.summary.metrics] == [Metric.DELETION]
    assert found.items[0].value == 0
