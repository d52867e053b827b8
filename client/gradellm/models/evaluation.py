"""Results of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gradellm.models.settings import Metric

IntervalKind = Literal["bootstrap", "monte_carlo"]


@dataclass(frozen=True, slots=True)
class EvaluationPoint:
    """A soft metric at one retention share."""

    pi: float | None
    """The requested share of tokens to keep. None for soft_ns and soft_nc."""
    achieved_pi: float
    """The resulting mean keep probability."""
    alpha: float
    """The exponent applied to scores."""
    mean: float
    samples: tuple[float, ...]
    """The metric for each sampled mask."""


@dataclass(frozen=True, slots=True)
class EvaluationItem:
    """One metric of one attribution at one step."""

    step: int
    """Index of the explained token in the completion."""
    name: str
    """The method, or the name of the caller's scores."""
    metric: Metric | None
    """None for a metric of a newer server that this client does not know."""
    value: float
    """For pi-Soft metrics the area under the curve over pi, not divided by its length."""
    points: tuple[EvaluationPoint, ...]
    """For the four soft metrics."""
    flips: tuple[bool, ...]
    """For insertion and deletion: whether the answer differs, at each of 20 steps."""
    expected_tokens: float | None
    """For soft_ns and soft_nc: the expected number of kept tokens."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its interval at 95 %."""

    mean: float
    low: float | None
    """Lower bound. None if there are too few values for an interval."""
    high: float | None
    kind: IntervalKind | None
    """"bootstrap" over prompts, or "monte_carlo" over the masks of one prompt, which says nothing about other
    prompts."""
    count: int
    """Number of prompts, or of masks at each pi."""

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, slots=True)
class MetricSummary:
    """One metric of one method, over all steps."""

    name: str
    metric: Metric | None
    interval: Interval
    median: float
    difference_from_random: Interval | None
    """Paired difference from random's value on the same masks. None if random was not evaluated."""
    curve: tuple[float, ...]
    """For pi-Soft metrics: the mean over steps at each pi."""
    expected_tokens: float | None
    steps: int


@dataclass(frozen=True, slots=True)
class EvaluationSummary:
    """The results of an evaluation over all steps."""

    metrics: tuple[MetricSummary, ...]
    steps: tuple[int, ...]
    """Indexes of the evaluated tokens in the completion."""
    skipped_steps: tuple[int, ...]
    """Steps without a measurement: removing all perturbable tokens changes the prediction too little."""
    label_index: int | None
    """With labels: index of the predicted label."""
    answer_outside_labels: bool
    """With labels: whether the model's most probable token begins none of them."""
    perturbable_tokens: int
    sequences_run: int
    """Perturbed sequences that the model ran."""
    sequences_asked: int
    """Perturbed sequences before deduplication."""
