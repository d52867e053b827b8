"""The report of an evaluation of one completion, collected from the events of a stream."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from gradellm.errors import InvalidReportError
from gradellm.evaluation.names import metric_title
from gradellm.models import EvaluationItem, EvaluationSummary, Event, Finished, Started, Token
from gradellm.serialization import MalformedError, from_document, to_document

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from matplotlib.figure import Figure

    from gradellm.models import Interval, Metric, MetricSummary, PromptToken, Provenance

__all__ = ["EvaluationReport"]

_FORMAT = "gradellm.evaluation"
_VERSION = 1


@dataclass(frozen=True)
class EvaluationReport:
    """Faithfulness of attributions of a completion. It prints as a table with notes."""

    started: Started
    """The prompt as tokens, and the resolved settings."""
    tokens: tuple[Token, ...]
    """The completion's tokens."""
    items: tuple[EvaluationItem, ...]
    """One per step, method and metric."""
    summary: EvaluationSummary
    """Results over all steps."""
    finished: Finished

    @classmethod
    def from_events(cls, events: Iterable[Event]) -> EvaluationReport:
        """Collect the events of one stream.

        Raises InvalidReportError if the stream is incomplete.
        """
        started: Started | None = None
        summary: EvaluationSummary | None = None
        finished: Finished | None = None
        tokens: list[Token] = []
        items: list[EvaluationItem] = []
        for event in events:
            started, summary, finished = (
                event.started or started,
                event.summary or summary,
                event.finished or finished,
            )
            if event.token is not None:
                tokens.append(event.token)
            if event.item is not None:
                items.append(event.item)
        if started is None or summary is None or finished is None:
            missing = "started" if started is None else "summary" if summary is None else "finished"
            raise InvalidReportError(f"the events are not those of a complete evaluation: {missing} is missing")
        return cls(started, tuple(tokens), tuple(items), summary, finished)

    @property
    def text(self) -> str:
        """The completion's text."""
        return "".join(token.text for token in self.tokens)

    @property
    def prompt_tokens(self) -> tuple[PromptToken, ...]:
        """The prompt's tokens."""
        return self.started.prompt_tokens

    @property
    def provenance(self) -> Provenance:
        """Model, versions and settings."""
        return self.started.provenance

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the evaluated methods and scores."""
        return tuple(dict.fromkeys(result.name for result in self.summary.metrics))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The measured metrics."""
        results = self.summary.metrics
        return tuple(dict.fromkeys(result.metric for result in results if result.metric is not None))

    @property
    def pis(self) -> tuple[float, ...]:
        """The retention shares of pi-Soft metrics."""
        evaluation = self.provenance.evaluation
        return () if evaluation is None else evaluation.pis

    def of(self, name: str, metric: Metric) -> MetricSummary:
        """Return one metric of one method. Raises InvalidReportError if it was not measured."""
        if (result := self._by_name.get((name, metric))) is not None:
            return result
        if self.summary.skipped_steps == self.summary.steps:
            raise InvalidReportError(
                f"{metric} could not be measured: at every step, removing the text changes the prediction too little"
            )
        raise InvalidReportError(
            f"{name}, {metric} is not in this report; it has {', '.join(self.names)} and {', '.join(self.metrics)}"
        )

    @cached_property
    def _by_name(self) -> dict[tuple[str, Metric | None], MetricSummary]:
        results = reversed(self.summary.metrics)  # of duplicates the first is kept
        return {(result.name, result.metric): result for result in results}

    def auc(self, name: str, metric: Metric = "pi_soft_ns") -> float:
        """Return the mean over steps of the metric; for pi-Soft metrics this is the area under the curve over pi."""
        return self.of(name, metric).interval.mean

    def interval(self, name: str, metric: Metric = "pi_soft_ns") -> Interval:
        """Return the mean over steps with its interval at 95 %."""
        return self.of(name, metric).interval

    def difference(self, name: str, metric: Metric = "pi_soft_ns") -> Interval | None:
        """Return the paired difference from random on the same masks; None if random was not evaluated."""
        return self.of(name, metric).difference_from_random

    @property
    def curves(self) -> Mapping[str, Mapping[str, tuple[float, ...]]]:
        """By metric and method: a pi-Soft metric at each of `pis`."""
        curves: dict[str, dict[str, tuple[float, ...]]] = {}
        for result in self.summary.metrics:
            if result.curve and result.metric is not None:
                curves.setdefault(result.metric, {})[result.name] = result.curve
        return curves

    def table(self) -> str:
        """Return a Markdown table with one row per method: the mean of each metric, and its difference from random."""
        head = ["method"]
        differs = {metric: self._has_differences(metric) for metric in self.metrics}
        for metric, has_differences in differs.items():
            head += [metric_title(metric), "less random's"] if has_differences else [metric_title(metric)]
        rows = [head, ["---", *["---:"] * (len(head) - 1)]]
        for name in self.names:
            row = [name]
            for metric in self.metrics:
                result = self._by_name.get((name, metric))
                less = None if result is None else result.difference_from_random
                row.append("" if result is None else str(result.interval))
                if differs[metric]:
                    row.append("" if less is None else str(less))
            rows.append(row)
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def _has_differences(self, metric: Metric) -> bool:
        results = [result for result in self.summary.metrics if result.metric == metric]
        return any(result.difference_from_random is not None for result in results)

    @property
    def notes(self) -> tuple[str, ...]:
        """Caveats of the values: an answer outside the labels, skipped steps."""
        summary, notes = self.summary, []
        if summary.answer_outside_labels:
            notes.append(
                "The answer is outside the labels: the model's most probable token begins none of them. The values are "
                f"those of the most probable label, {self.text.strip()!r}."
            )
        if summary.skipped_steps:
            notes.append(
                f"{len(summary.skipped_steps)} of {len(summary.steps)} steps are skipped: removing the text changes "
                "the prediction too little."
            )
        if not summary.metrics:
            notes.append("Nothing could be measured.")
        return tuple(notes)

    def __str__(self) -> str:
        return "\n\n".join([*([self.table()] if self.summary.metrics else []), *self.notes])

    def plot(self) -> Figure:
        """Plot the curves over pi, one panel per metric; `.savefig("curves.png")` writes it. Needs matplotlib.

        Raises InvalidReportError if no pi-Soft metric was measured.
        """
        from gradellm.evaluation.figures import curves_figure

        if not self.curves:
            raise InvalidReportError("there are no curves to draw: request the metrics pi_soft_ns or pi_soft_nc")
        return curves_figure(self.pis, self.curves)

    def to_json(self) -> str:
        """Serialize the report as one line of JSON. `from_json` restores an equal report."""
        return to_document(self, _FORMAT, _VERSION)

    @classmethod
    def from_json(cls, text: str) -> EvaluationReport:
        """Read the result of `to_json`.

        Raises InvalidReportError for other JSON, or an unsupported version.
        """
        try:
            return from_document(cls, text, _FORMAT, _VERSION, "an evaluation report")
        except MalformedError as error:
            raise InvalidReportError(str(error)) from error
