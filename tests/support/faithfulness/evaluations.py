"""Evaluations in tests: run alone by an engine, and compared with the reference or with each other."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from gradellm_engine import (
    Engine,
    EvaluatedMethod,
    EvaluationItem,
    EvaluationSettings,
    EvaluationSummary,
    Message,
    Metric,
    PromptInput,
    Request,
    Segment,
)
from support.faithfulness.reference import Evaluated, Measured
from support.scheduler_harness import RequestOutput, run_alone

TOLERANCE = 1e-4
SURE = 1e-5  # margin of the most probable answer that rounding cannot change
PERTURBING = tuple(metric for metric in Metric if not metric.needs_rationale)
PI_SOFT = (Metric.PI_SOFT_NS, Metric.PI_SOFT_NC)
COARSE = (0.1, 0.35, 0.9)
RAW = "A red fox did not like rain."
CHAT = PromptInput(
    messages=(Message("system", "Be brief. Be kind."), Message("user", "A red fox ran. Who ran?")),
    segments=(Segment("who", 2, 9, 1),),
)


@dataclass
class EvaluationRun:
    """The events of an evaluation."""

    output: RequestOutput

    @property
    def items(self) -> list[EvaluationItem]:
        return [event for event in self.output.events if isinstance(event, EvaluationItem)]

    @property
    def summary(self) -> EvaluationSummary:
        (summary,) = (event for event in self.output.events if isinstance(event, EvaluationSummary))
        return summary

    def samples(self, name: str, metric: Metric, step: int | None = None) -> np.ndarray[Any, Any]:
        """Samples of one method and soft metric. [steps, P, N]"""
        return np.array(
            [
                [point.samples for point in item.points]
                for item in self.items
                if (item.name, item.metric) == (name, metric) and step in (None, item.step)
            ]
        )


def run_evaluation(engine: Engine, request: Request) -> EvaluationRun:
    """Run an evaluation as the engine's only request."""
    output = run_alone(engine, request)
    if output.error is not None:
        raise output.error
    return EvaluationRun(output)


def own_scores(seed: int, *lengths: int) -> dict[int, Sequence[float]]:
    """Scores of the caller's own by step, with one length each: of both signs, some of them equal."""
    rng = np.random.default_rng(seed)
    return {step: np.round(rng.normal(size=length), 1).tolist() for step, length in enumerate(lengths)}


def methods(*switches: Any) -> tuple[EvaluatedMethod, ...]:
    """Methods to evaluate, with names that differ."""
    return tuple(
        EvaluatedMethod(f"{each.name} {index}" if each.name != "random" else "random", each)
        for index, each in enumerate(switches)
    )


def compare(items: Sequence[EvaluationItem], expected: Evaluated) -> tuple[float, int]:
    """The largest difference from the reference, and the number of flips that are too near to call."""
    assert [(item.step, item.name, item.metric) for item in items] == list(expected.measured)
    largest, num_unsure = 0.0, 0
    for item in items:
        measured = expected.measured[item.step, item.name, item.metric]
        differing = [i for i, (a, b) in enumerate(zip(item.flips, measured.flips, strict=True)) if a != b]
        assert all(measured.margins[i] <= SURE for i in differing), (item, measured)
        num_unsure += len(differing)
        assert item.value == pytest.approx(measured.value, abs=TOLERANCE + len(differing) / 20)
        pairs = _compared_points(item, measured)
        if not differing:
            pairs.append((item.value, measured.value))
        if item.metric in (Metric.SOFT_NS, Metric.SOFT_NC):
            assert item.expected_tokens == pytest.approx(measured.achieved[0] * expected.num_perturbable_at[item.step])
        else:
            assert item.expected_tokens is None
        largest = max([largest, *(abs(a - b) for a, b in pairs)])
    return largest, num_unsure


def _compared_points(item: EvaluationItem, measured: Measured) -> list[tuple[float, float]]:
    """Pairs of an item's numbers at each pi and the reference's."""
    pairs: list[tuple[float, float]] = []
    assert len(item.points) == len(measured.samples)
    columns = (item.points, measured.samples, measured.achieved, measured.alphas)
    for point, samples, achieved, alpha in zip(*columns, strict=True):
        pairs += zip(point.samples, samples, strict=True)
        pairs += [(point.mean, sum(samples) / len(samples)), (point.achieved, achieved)]
        assert point.alpha == pytest.approx(alpha, rel=1e-9)
        if point.pi is not None:
            assert point.achieved == pytest.approx(point.pi, abs=1e-9)
    return pairs


def check_summary(summary: EvaluationSummary, expected: Evaluated, settings: EvaluationSettings) -> None:
    assert list(summary.steps) == expected.steps
    assert list(summary.skipped) == expected.skipped
    assert (summary.label, summary.is_outside) == (expected.label, expected.is_outside)
    assert summary.num_perturbable == expected.num_perturbable_at[expected.steps[0]]
    num_texts = 0
    for found in summary.metrics:
        measured = expected.of(found.name, found.metric)
        if any(margin <= SURE for each in measured for margin in each.margins):
            continue
        values = [each.value for each in measured]
        assert found.steps == len(values)
        assert found.interval.mean == pytest.approx(statistics.mean(values), abs=TOLERANCE)
        assert found.median == pytest.approx(statistics.median(values), abs=TOLERANCE)
        if found.metric in PI_SOFT:
            points = [[statistics.mean(samples) for samples in each.samples] for each in measured]
            assert found.curve == pytest.approx(
                [statistics.mean(column) for column in zip(*points, strict=True)], abs=TOLERANCE
            )
        else:
            assert found.curve == ()
        has_interval = found.metric.is_soft and settings.samples > 1
        assert (found.interval.low is not None) == (found.interval.high is not None) == has_interval
        if found.interval.low is not None and found.interval.high is not None:
            assert found.interval.low <= found.interval.mean <= found.interval.high
        random = expected.of("random", found.metric)
        assert (found.difference is None) == (not random or found.name == "random")
        if found.difference is not None:
            gain = statistics.mean(values) - statistics.mean(each.value for each in random)
            assert found.difference.mean == pytest.approx(gain, abs=TOLERANCE)
        soft = found.metric in (Metric.SOFT_NS, Metric.SOFT_NC)
        assert (found.expected_tokens is not None) == soft
    counts = {Metric.INSERTION: 20, Metric.DELETION: 20}
    for (_, _, metric), each in expected.measured.items():
        num_texts += sum(map(len, each.samples)) or counts.get(metric, 0)
    assert summary.num_requested == num_texts + 2 * len(expected.steps)


def largest_difference(a: EvaluationRun, b: EvaluationRun, names: Sequence[str] = ("own",)) -> float:
    """The largest difference of two evaluations in any number of the methods `names`."""
    expected = {(item.step, item.name, item.metric): item for item in b.items if item.name in names}
    actual = [item for item in a.items if item.name in names]
    assert {(item.step, item.name, item.metric) for item in actual} == set(expected)
    largest = 0.0
    for item in actual:
        other = expected[item.step, item.name, item.metric]
        assert item.flips == other.flips
        pairs = [(item.value, other.value)]
        for p, q in zip(item.points, other.points, strict=True):
            assert p.pi == q.pi
            assert (p.achieved, p.alpha) == pytest.approx((q.achieved, q.alpha), rel=1e-4)  # scores are rounded, too
            pairs += zip(p.samples, q.samples, strict=True)
        largest = max([largest, *(abs(x - y) for x, y in pairs)])
    return largest
