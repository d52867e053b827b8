"""From the items of an evaluation to one summary a method and metric: means over steps, with intervals."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from gradellm_engine.faithfulness.measurements import point_weights
from gradellm_engine.faithfulness.metrics.statistics import Interval, median, monte_carlo_intervals
from gradellm_engine.faithfulness.results import EvaluationItem, MetricSummary
from gradellm_engine.faithfulness.settings import EvaluationSettings, Metric

RANDOM = "random"  # the baseline method
ByMethod = dict[str, list[EvaluationItem]]


def items_by_metric(items: Sequence[EvaluationItem], metrics: Sequence[Metric]) -> dict[Metric, ByMethod]:
    """Items by metric and method, in the order of `metrics`; a metric without items is left out."""
    by_metric: dict[Metric, ByMethod] = {}
    for metric in metrics:
        for item in items:
            if item.metric is metric:
                by_metric.setdefault(metric, {}).setdefault(item.name, []).append(item)
    return by_metric


def soft_intervals(by_metric: Mapping[Metric, ByMethod], settings: EvaluationSettings) -> dict[Metric, list[Interval]]:
    """Monte Carlo intervals of soft metrics over the same masks, which are resampled alike.

    Args:
        by_metric: items of soft metrics, all with pis or all without.
        settings: of the evaluation.

    Returns:
        For each metric the intervals of all methods, then those of their differences from random (`_compared`).
    """
    if not by_metric:
        return {}
    samples: dict[Metric, list[NDArray[np.float64]]] = {}  # [steps P, N] each
    for metric, by_method in by_metric.items():
        of_method = {name: _samples(items) for name, items in by_method.items()}
        differences = (of_method[name] - of_method[RANDOM] for name in _compared(of_method))
        samples[metric] = [*of_method.values(), *differences]
    metric, by_method = next(iter(by_metric.items()))
    num_steps = len(next(iter(by_method.values())))
    weights = np.tile(point_weights(metric, settings.pis), num_steps) / num_steps
    intervals = iter(monte_carlo_intervals(np.stack([*chain(*samples.values())]), weights, settings.seed))
    return {metric: [*islice(intervals, len(rows))] for metric, rows in samples.items()}


def metric_summaries(
    metric: Metric, by_method: Mapping[str, Sequence[EvaluationItem]], intervals: Sequence[Interval] | None
) -> Iterator[MetricSummary]:
    """One metric's summary of every method.

    Args:
        metric: the metric.
        by_method: items of the same steps for each method.
        intervals: see `soft_intervals`; None for a metric without random masks, whose means have no interval.
    """
    names, compared = list(by_method), _compared(by_method)
    if intervals is None:
        values = {name: float(np.mean([item.value for item in items])) for name, items in by_method.items()}
        means = [*values.values(), *(values[name] - values[RANDOM] for name in compared)]
        intervals = [Interval(mean, None, None, "monte_carlo", 1) for mean in means]
    differences = dict(zip(compared, intervals[len(names) :], strict=True))
    for name, interval in zip(names, intervals, strict=False):
        items = by_method[name]
        expected = [item.expected_tokens for item in items if item.expected_tokens is not None]
        curves = [[point.mean for point in item.points] for item in items]
        yield MetricSummary(
            name=name,
            metric=metric,
            interval=interval,
            median=median(np.array([item.value for item in items])),
            difference=differences.get(name),
            curve=tuple(np.mean(curves, axis=0).tolist()) if metric.has_pis else (),
            expected_tokens=float(np.mean(expected)) if expected else None,
            steps=len(items),
        )


def _compared(names: Collection[str]) -> list[str]:
    """The methods with a difference from random: all except random itself where random is evaluated, else none."""
    return [name for name in names if name != RANDOM] if RANDOM in names else []


def _samples(items: Sequence[EvaluationItem]) -> NDArray[np.float64]:
    """A row for each step and point. [steps P, N]"""
    return np.array([point.samples for item in items for point in item.points])
