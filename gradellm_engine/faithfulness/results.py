"""What an evaluation tells: an item a step, method and metric, and a summary."""

from __future__ import annotations

from dataclasses import dataclass

from gradellm_engine.faithfulness.settings import Metric
from gradellm_engine.faithfulness.statistics import Interval


@dataclass(frozen=True)
class Point:
    """A metric where a share of the text is kept.

    Attributes:
        pi: the share that was asked for; None for the original metrics, which ask for none.
        achieved: the mean probability of being kept.
        alpha: what scores were raised to.
        samples: the metric, for each mask that was drawn.
        mean: of them.
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
        step: which token of the completion was explained.
        name: whose attribution it was.
        metric: what was measured.
        value: the area under the curve over pi; of the original metrics the mean over masks; of insertion and deletion
            the share of changed answers; of others the metric itself.
        points: of soft metrics, one for each pi.
        flips: of insertion and deletion: whether the answer differs, at each of 20 steps.
        expected_tokens: of the original metrics: how many tokens are kept in the mean.
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
    """One metric of one method, over all steps.

    Attributes:
        name: whose attributions they were.
        metric: what was measured.
        interval: the mean over steps; of soft metrics with a Monte Carlo interval, which says how much the masks that
            were drawn leave open, and nothing about other prompts.
        median: over steps.
        difference: from the random method's, mask by mask; None where that was not evaluated.
        curve: of pi-Soft metrics, the mean over steps at each pi.
        expected_tokens: the mean over steps.
        steps: how many were measured.
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
    """What an evaluation came to.

    Attributes:
        metrics: one for each method and metric that could be measured.
        steps: those that were evaluated.
        skipped: those of them at which emptying the text moves the distribution too little to measure anything.
        label: the predicted label's place among the labels; None without labels.
        is_outside: whether the model's most probable token begins none of the labels.
        num_perturbable: tokens that could be perturbed, at the first step.
        num_sequences: changed texts that were run.
        num_asked: those that were asked for; equal ones run once.
    """

    metrics: tuple[MetricSummary, ...]
    steps: tuple[int, ...]
    skipped: tuple[int, ...]
    label: int | None
    is_outside: bool
    num_perturbable: int
    num_sequences: int
    num_asked: int
