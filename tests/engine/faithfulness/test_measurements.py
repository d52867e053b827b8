"""Metrics from outcomes, by hand and without a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradellm_engine import EvaluatedMethod, EvaluationItem, EvaluationSettings, Metric
from gradellm_engine.faithfulness.measurements import Measurement, Outcome, UnperturbedStep, point_weights
from gradellm_engine.faithfulness.metrics.hellinger import MIN_BASELINE
from gradellm_engine.faithfulness.metrics.keep_probabilities import retentions, soft_retention

SCORES = np.array([0.1, 0.4, 0.2, 0.3])
RATIONALE = np.array([False, True, False, True])
STEP = UnperturbedStep(torch.tensor([0.5, 0.5]), baseline=0.4, answer=1)
SETTINGS = EvaluationSettings((EvaluatedMethod("own"),), pis=(0.2, 0.6), samples=2)


def item_of(measurement: Measurement) -> EvaluationItem:
    return measurement.item(3, STEP, RATIONALE, SETTINGS)


@pytest.mark.parametrize(
    ("metric", "samples"),
    [(Metric.PI_SOFT_NS, ((1, 0.5), (0, 0))), (Metric.PI_SOFT_NC, ((0, 0.5), (1, 1.5)))],
)
def test_pi_soft_metrics_are_areas_over_pi(metric: Metric, samples: tuple[tuple[float, float], ...]) -> None:
    outcomes = [Outcome(distance, 0) for distance in (0.0, 0.2, 0.4, 0.6)]
    item = item_of(Measurement("own", metric, SCORES, list(retentions(SCORES, SETTINGS.pis)), outcomes))
    assert [point.samples for point in item.points] == [pytest.approx(row) for row in samples]
    means = [sum(row) / 2 for row in samples]
    assert [point.mean for point in item.points] == pytest.approx(means)
    assert item.value == pytest.approx(0.4 * sum(means) / 2)
    assert (item.step, item.name, item.expected_tokens) == (3, "own", None)


def test_the_original_soft_metrics_are_means() -> None:
    outcomes = [Outcome(0.2, 0), Outcome(0.4, 0)]
    item = item_of(Measurement("own", Metric.SOFT_NC, SCORES, [soft_retention(SCORES, raw=True)], outcomes))
    assert item.value == pytest.approx(0.75)
    assert item.expected_tokens == pytest.approx(1.0)


def test_insertion_and_deletion_are_shares_of_flips() -> None:
    outcomes = [Outcome(0.0, int(j >= 5)) for j in range(20)]
    item = item_of(Measurement("own", Metric.DELETION, SCORES, outcomes=outcomes))
    assert item.flips == (True,) * 5 + (False,) * 15
    assert item.value == 0.25


@pytest.mark.parametrize("metric", [Metric.AUPRC, Metric.TOKEN_F1])
def test_agreement_with_a_rationale_needs_no_outcomes(metric: Metric) -> None:
    assert item_of(Measurement("own", metric, SCORES)).value == 1
    assert item_of(Measurement("own", metric, -SCORES)).value < 0.5


def test_a_single_pi_has_no_area() -> None:
    assert point_weights(Metric.PI_SOFT_NS, (0.3,)).tolist() == [1]
    assert point_weights(Metric.SOFT_NS, (0.3, 0.6)).tolist() == [1]


@pytest.mark.parametrize(("baseline", "is_skipped"), [(MIN_BASELINE, False), (MIN_BASELINE / 2, True)])
def test_steps_with_a_small_baseline_are_skipped(baseline: float, is_skipped: bool) -> None:
    assert UnperturbedStep(STEP.P, baseline, 0).is_skipped == is_skipped
