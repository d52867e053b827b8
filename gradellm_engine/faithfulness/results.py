"""Results of an evaluation: an item for each step, method and metric, and a summary."""

from __future__ import annotations

from dataclasses import dataclass

from gradellm_engine.faithfulness.metrics.statistics import Interval
from gradellm_engine.faithfulness.settings import Metric


@dataclass(frozen=True)
class Point:
    """A soft metric at one pi.

    Attributes:
        pi: the requested mean retaining probability; None for the original metrics, which have no pi.
        achieved: the mean retaining probability of the scores.
        alpha: the power that scores were raised to.
        samples: the metric for each random mask. [N]
        mean: the mean of `samples`.
    """

    pi: float | None
    achieved: float
    alpha: float
    samples: tuple[float, ...]
    mean: float


@dataclass(frozen=True)
class EvaluationItem:
    """One metric of one method's attribution at one step.

    Attributes:
        step: index of the explained token in the completion.
        name: of the evaluated method.
        metric: the metric.
        value: pi-Soft metrics: the area under the curve over pi; original soft metrics: the mean over masks; insertion
            and deletion: the share of flips; AUPRC and token-F1: the metric itself.
        points: of soft metrics, one for each pi.
        flips: of insertion and deletion, whether the answer differs, at each of 20 steps.
        expected_tokens: of the original soft metrics, the expected number of kept tokens, E[R].
    """

    step: int
    name: str
    metric: Metric
    value: float
    points: tuple[Point, ...] = ()
    flips: tuple[bool, ...] = ()
    expected_tokens: float | None = None


@dataclass(frozen=True)
class MetricSummary:
    """One metric of one method over all steps.

    Attributes:
        name: of the evaluated method.
        metric: the metric.
        interval: the mean over steps; of soft metrics with a Monte Carlo interval over the random masks, which says
            nothing about other prompts.
        median: over steps.
        difference: of the mean from the random method's, with an interval paired mask by mask; None where random was
            not evaluated.
        curve: of pi-Soft metrics, the mean over steps at each pi. [P]
        expected_tokens: of the original soft metrics, E[R], the mean over steps.
        steps: number of steps that were measured.
    """

    name: str
    metric: Metric
    interval: Interval
    median: float
    difference: Interval | None
    curve: tuple[float, ...]
    expected_tokens: float | None
    steps: int


@dataclass(frozen=True)
class EvaluationSummary:
    """The end of an evaluation.

    Attributes:
        metrics: one summary for each method and metric that was measured.
        steps: the steps that were evaluated.
        skipped: steps without soft metrics: zeroing all of U moves the distribution by less than `MIN_BASELINE`.
        label: index of the predicted label; None without labels.
        is_outside: whether the model's most probable token is the first token of no label.
        num_perturbable: size of U at the first step.
        num_sequences: texts that were run.
        num_requested: texts that metrics needed; equal ones are run once.
    """

    metrics: tuple[MetricSummary, ...]
    steps: tuple[int, ...]
    skipped: tuple[int, ...]
    label: int | None
    is_outside: bool
    num_perturbable: int
    num_sequences: int
    num_requested: int


EvaluationEvent = float | EvaluationItem | EvaluationSummary
"""A result of an evaluation, or the share of its work that is done."""
