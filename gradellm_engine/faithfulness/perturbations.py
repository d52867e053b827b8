"""The perturbed texts that the metrics of a step need, made in batches for the model.

Insertion and deletion remove the top scores (`top_sets`), soft metrics zero the tokens that random masks remove. All
methods share the uniforms of the masks; NS and NC share a method's retaining probabilities.

Making all texts of a step at once would block the engine's other requests. So the generators here yield None
between bounded amounts of work: a pause, in which the scheduler may run other requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gradellm_engine.faithfulness.measurements import Measurement
from gradellm_engine.faithfulness.metrics.insertion_deletion import top_sets
from gradellm_engine.faithfulness.metrics.keep_probabilities import retentions, soft_retention
from gradellm_engine.faithfulness.metrics.masks import keep_mask, uniform_rows
from gradellm_engine.faithfulness.pass_budget import PassBudget
from gradellm_engine.faithfulness.perturbed_text import PerturbedText, StepText
from gradellm_engine.faithfulness.settings import EvaluationSettings, Metric

MAX_TEXTS = 512  # made between two pauses
MAX_UNIFORMS = 1 << 16  # uniforms, or retaining probabilities, computed between two pauses
SHORT_BISECTION = 1 << 13  # retaining probabilities whose alphas take about as long to find as a pass

MeasuredText = tuple[Measurement, PerturbedText]
"""A perturbed text, and the measurement that needs its outcome."""


@dataclass
class TextBatch:
    """Perturbed texts to run together, of one step or of several.

    Attributes:
        texts: step, measurement and text, in the order of each measurement's outcomes.
        completed: steps whose last text is in this batch or in an earlier one, with their measurements.
    """

    texts: list[tuple[int, Measurement, PerturbedText]] = field(default_factory=list)
    completed: list[tuple[int, list[Measurement]]] = field(default_factory=list)


def text_batches(
    steps: Iterable[tuple[StepText, list[Measurement]]],
    settings: EvaluationSettings,
    pad_id: int,
    budget: PassBudget,
) -> Iterator[TextBatch | None]:
    """The texts of all steps in batches; None is a pause.

    Args:
        steps: each step's text with its measurements, made when the generator gets there.
        settings: of the evaluation.
        pad_id: the padding token, for `Removal.PAD`.
        budget: sets the batch size.
    """
    batch, num_tokens, num_made = TextBatch(), 0, 0
    for step_text, measurements in steps:
        for perturbed in perturbed_texts(step_text, measurements, settings, pad_id):
            if perturbed is None:
                yield None
                continue
            measurement, text = perturbed
            batch.texts.append((step_text.step, measurement, text))
            num_tokens += len(text)
            num_made += 1
            if num_tokens >= budget.batch_tokens:
                yield batch
                batch, num_tokens, num_made = TextBatch(), 0, 0
            elif num_made >= MAX_TEXTS:
                num_made = 0
                yield None
        batch.completed.append((step_text.step, measurements))
    yield batch


def perturbed_texts(
    text: StepText, measurements: Sequence[Measurement], settings: EvaluationSettings, pad_id: int
) -> Iterator[MeasuredText | None]:
    """The texts that a step's measurements need; None is a pause."""
    for measurement in measurements:
        if measurement.metric.is_ranked:
            for top in top_sets(measurement.scores, settings.seed, text.step):
                # Deletion removes the tokens with the top scores, insertion the rest.
                removed = np.full(len(text.indexes), measurement.metric is Metric.INSERTION)
                removed[top] = measurement.metric is Metric.DELETION
                yield measurement, text.without(removed, settings.removal, pad_id)
    for has_pis in (True, False):
        soft = [m for m in measurements if m.metric.is_soft and m.metric.has_pis is has_pis]
        if soft:
            yield from _masked_texts(text, soft, settings, settings.pis if has_pis else (None,))


def _masked_texts(
    text: StepText, measurements: Sequence[Measurement], settings: EvaluationSettings, pis: Sequence[float | None]
) -> Iterator[MeasuredText | None]:
    """The texts of soft metrics: `settings.samples` masks at each pi, MAX_UNIFORMS numbers at a time.

    Args:
        text: the step's text.
        measurements: of metrics that share their uniforms, all with pis or all without.
        settings: of the evaluation.
        pis: ascending; (None,) for the original metrics.
    """
    num_tokens = len(text.indexes)
    by_method: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        by_method.setdefault(measurement.name, []).append(measurement)
    rows_at_once = max(1, MAX_UNIFORMS // max(1, num_tokens))
    for first_pi in range(0, len(pis), rows_at_once):
        some_pis = pis[first_pi : first_pi + rows_at_once]
        for method_measurements in by_method.values():
            _add_retentions(method_measurements, some_pis, raw_scores=settings.raw_scores)
            if num_tokens * len(some_pis) > SHORT_BISECTION:
                yield None
        rows = [(index, sample) for index in range(len(some_pis)) for sample in range(settings.samples)]
        for first_row in range(0, len(rows), rows_at_once):
            some_rows = rows[first_row : first_row + rows_at_once]
            keys = [(some_pis[index], sample) for index, sample in some_rows]
            uniforms = uniform_rows(settings.seed, text.step, keys, num_tokens)
            pi_indexes = [first_pi + index for index, _ in some_rows]
            for method_measurements in by_method.values():
                for measurement, removed in _removed(method_measurements, uniforms, pi_indexes):
                    yield measurement, text.zeroed(removed)


def _add_retentions(measurements: Sequence[Measurement], pis: Sequence[float | None], *, raw_scores: bool) -> None:
    """Add the retaining probabilities of one method at some pis to each of its measurements."""
    scores = measurements[0].scores
    targets = [pi for pi in pis if pi is not None]
    found = retentions(scores, targets) if targets else (soft_retention(scores, raw_scores),)
    for measurement in measurements:
        measurement.retentions += found


def _removed(
    measurements: Sequence[Measurement], uniforms: NDArray[np.float64], pi_indexes: Sequence[int]
) -> Iterator[tuple[Measurement, NDArray[np.bool_]]]:
    """One method's masks of removed tokens, [U] each: NS removes what a mask does not keep, NC what it keeps.

    Args:
        measurements: of one method.
        uniforms: one row a mask. [R, U]
        pi_indexes: index of each row's pi. [R]
    """
    probs = np.stack([measurements[0].retentions[index].probs for index in pi_indexes])
    kept = keep_mask(uniforms[:, None], probs)[:, 0]  # [R, U]
    for measurement in measurements:
        for removed in ~kept if measurement.metric.keeps else kept:
            yield measurement, removed
