"""From the model's predictions after perturbed texts to one metric of one method at one step.

No model runs here: `gradellm_engine.faithfulness.evaluation` runs the texts and hands over an `Outcome` for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gradellm_engine.faithfulness.metrics.curves import curve, trapezoid_weights
from gradellm_engine.faithfulness.metrics.hellinger import MIN_BASELINE, pi_soft_nc, pi_soft_ns
from gradellm_engine.faithfulness.metrics.insertion_deletion import flip_auc
from gradellm_engine.faithfulness.metrics.keep_probabilities import Retention
from gradellm_engine.faithfulness.metrics.rationale_agreement import average_precision, token_f1
from gradellm_engine.faithfulness.results import EvaluationItem, Point
from gradellm_engine.faithfulness.settings import EvaluationSettings, Metric

Scores = NDArray[np.float64]  # of U. [U]


@dataclass(frozen=True)
class UnperturbedStep:
    """The model's prediction at a step before anything is perturbed.

    Attributes:
        P: next-token distribution. [V]
        baseline: H(P, P_0), where P_0 is the distribution with all of U zeroed.
        answer: index of the most probable label, or without labels the most probable token.
    """

    P: Tensor
    baseline: float
    answer: int

    @property
    def is_skipped(self) -> bool:
        """Whether zeroing all of U moves the distribution too little for soft metrics to be defined."""
        return self.baseline < MIN_BASELINE


@dataclass(frozen=True)
class Outcome:
    """The model's prediction after a perturbed text.

    Attributes:
        distance: H(P, P'), from the distribution of the unperturbed text.
        answer: see `UnperturbedStep`.
    """

    distance: float
    answer: int


@dataclass
class Measurement:
    """One metric of one method's scores at one step.

    Attributes:
        name: of the evaluated method.
        metric: the metric.
        scores: the method's scores of U. [U]
        retentions: of soft metrics, the retaining probabilities at each pi. [P]
        outcomes: of the perturbed texts, in the order in which the texts were made: by pi and sample (soft metrics), or
            by step j = 1..20 (insertion and deletion).
    """

    name: str
    metric: Metric
    scores: Scores
    retentions: list[Retention] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    def item(
        self, step: int, unperturbed: UnperturbedStep, rationale: NDArray[np.bool_], settings: EvaluationSettings
    ) -> EvaluationItem:
        """The metric, once all outcomes are there.

        Args:
            step: index of the explained token in the completion.
            unperturbed: the prediction at this step without perturbation.
            rationale: which tokens of U the human rationale holds. [U]
            settings: of the evaluation.
        """
        if self.metric.is_soft:
            return self._soft_item(step, unperturbed.baseline, settings.pis)
        if self.metric.is_ranked:
            flips = np.array([outcome.answer != unperturbed.answer for outcome in self.outcomes])
            return EvaluationItem(step, self.name, self.metric, flip_auc(flips), flips=tuple(flips.tolist()))
        if self.metric is Metric.AUPRC:
            value = average_precision(self.scores, rationale)
        else:
            value = token_f1(self.scores, rationale, settings.seed, step)
        return EvaluationItem(step, self.name, self.metric, value)

    def _soft_item(self, step: int, baseline: float, pis: Sequence[float]) -> EvaluationItem:
        distances = np.array([outcome.distance for outcome in self.outcomes]).reshape(len(self.retentions), -1)
        samples = (pi_soft_ns if self.metric.keeps else pi_soft_nc)(distances, baseline)  # [P, N]
        means = curve(samples)
        points = tuple(
            Point(retention.pi, retention.achieved, retention.alpha, tuple(row.tolist()), float(mean))
            for retention, row, mean in zip(self.retentions, samples, means, strict=True)
        )
        expected_tokens = None if self.metric.has_pis else self.retentions[0].expected_tokens
        value = float(point_weights(self.metric, pis) @ means)
        return EvaluationItem(step, self.name, self.metric, value, points, expected_tokens=expected_tokens)


def point_weights(metric: Metric, pis: Sequence[float]) -> NDArray[np.float64]:
    """Weights of a soft metric's points in its value: of the area where there are several. [P]"""
    return trapezoid_weights(pis) if metric.has_pis and len(pis) > 1 else np.ones(1)
