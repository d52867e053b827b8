"""What an evaluation of one completion came to: the events of one stream, collected."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from gradellm.errors import InvalidReportError
from gradellm.models import EvaluationItem, EvaluationSummary, Event, Finished, Started, Token
from gradellm.serialization import MalformedError, from_document, to_document

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from matplotlib.figure import Figure

    from gradellm.models import Interval, Metric, MetricSummary, PromptToken, Provenance

__all__ = ["EvaluationReport"]

_FORMAT = "gradellm.evaluation"
_VERSION = 1
_TITLES: dict[str, str] = {
    "pi_soft_ns": "π-Soft-NS",
    "pi_soft_nc": "π-Soft-NC",
    "soft_ns": "Soft-NS",
    "soft_nc": "Soft-NC",
    "insertion": "insertion",
    "deletion": "deletion",
    "auprc": "AUPRC",
    "token_f1": "token F1",
}


def title(metric: str) -> str:
    """What people call a metric."""
    return _TITLES.get(metric, metric)


@dataclass(frozen=True)
class EvaluationReport:
    """How faithful explanations of a completion are. It prints as a table, with what one must know to read it."""

    started: Started
    """How the request was understood."""
    tokens: tuple[Token, ...]
    """The completion's tokens."""
    items: tuple[EvaluationItem, ...]
    """One a step, method and metric."""
    summary: EvaluationSummary
    """All steps together."""
    finished: Finished

    @classmethod
    def from_events(cls, events: Iterable[Event]) -> EvaluationReport:
        """Collect the events of one stream.

        Raises InvalidReportError where it is not a whole one.
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
            lacking = "started" if started is None else "summary" if summary is None else "finished"
            raise InvalidReportError(f"the events are not those of a whole evaluation: {lacking} is missing")
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
        """All that it takes to compute the same again."""
        return self.started.provenance

    @property
    def names(self) -> tuple[str, ...]:
        """Whose attributions were evaluated."""
        return tuple(dict.fromkeys(of.name for of in self.summary.metrics))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What was measured."""
        return tuple(dict.fromkeys(of.metric for of in self.summary.metrics if of.metric is not None))

    @property
    def pis(self) -> tuple[float, ...]:
        """The shares of the text that pi-Soft metrics kept."""
        evaluation = self.provenance.evaluation
        return () if evaluation is None else evaluation.pis

    def of(self, name: str, metric: Metric) -> MetricSummary:
        """Return one metric of one attribution. Raises InvalidReportError where it was not measured."""
        if (of := self._by_name.get((name, metric))) is not None:
            return of
        if self.summary.skipped_steps == self.summary.steps:
            raise InvalidReportError(
                f"{metric} could not be measured: emptying the text changes what comes next at none of the steps"
            )
        raise InvalidReportError(
            f"{name}, {metric} is not in this report; it has {', '.join(self.names)} and {', '.join(self.metrics)}"
        )

    @cached_property
    def _by_name(self) -> dict[tuple[str, Metric | None], MetricSummary]:
        return {(of.name, of.metric): of for of in reversed(self.summary.metrics)}  # the first counts

    def auc(self, name: str, metric: Metric = "pi_soft_ns") -> float:
        """Return the mean over steps: of pi-Soft metrics the area under the curve over pi, else the metric itself."""
        return self.of(name, metric).interval.mean

    def interval(self, name: str, metric: Metric = "pi_soft_ns") -> Interval:
        """Return the mean over steps, with its interval at 95 %."""
        return self.of(name, metric).interval

    def difference(self, name: str, metric: Metric = "pi_soft_ns") -> Interval | None:
        """Return how much more it is than random's, on the same masks; None where random was not evaluated."""
        return self.of(name, metric).difference_from_random

    @property
    def curves(self) -> Mapping[str, Mapping[str, tuple[float, ...]]]:
        """By metric and name: a pi-Soft metric at each of `pis`."""
        curves: dict[str, dict[str, tuple[float, ...]]] = {}
        for of in self.summary.metrics:
            if of.curve and of.metric is not None:
                curves.setdefault(of.metric, {})[of.name] = of.curve
        return curves

    def table(self) -> str:
        """Return a Markdown table: a row a method; each metric's mean, and its difference from random."""
        head = ["method"]
        differs = {metric: self._has_differences(metric) for metric in self.metrics}
        for metric, has_differences in differs.items():
            head += [title(metric), "less random's"] if has_differences else [title(metric)]
        rows = [head, ["---", *["---:"] * (len(head) - 1)]]
        for name in self.names:
            row = [name]
            for metric in self.metrics:
                of = self._by_name.get((name, metric))
                less = None if of is None else of.difference_from_random
                row.append("" if of is None else str(of.interval))
                if differs[metric]:
                    row.append("" if less is None else str(less))
            rows.append(row)
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def _has_differences(self, metric: Metric) -> bool:
        return any(of.difference_from_random is not None for of in self.summary.metrics if of.metric == metric)

    @property
    def notes(self) -> tuple[str, ...]:
        """What one must know to read the numbers: an answer outside the labels, steps that were skipped."""
        summary, said = self.summary, []
        if summary.answer_outside_labels:
            said.append(
                "The answer lies outside the labels: the model's likeliest token begins none of them. The numbers are "
                f"of the likeliest label, {self.text.strip()!r}."
            )
        if summary.skipped_steps:
            said.append(
                f"{len(summary.skipped_steps)} of {len(summary.steps)} steps are skipped: emptying the text changes "
                "what comes next too little to measure anything."
            )
        if not summary.metrics:
            said.append("Nothing could be measured.")
        return tuple(said)

    def __str__(self) -> str:
        return "\n\n".join([*([self.table()] if self.summary.metrics else []), *self.notes])

    def plot(self) -> Figure:
        """Draw the curves over pi, a panel a metric; `.savefig("curves.png")` keeps it. Needs matplotlib.

        Raises InvalidReportError where no pi-Soft metric was measured.
        """
        from gradellm.evaluation.figures import curves_figure

        if not self.curves:
            raise InvalidReportError("there are no curves to draw: ask for the metrics pi_soft_ns or pi_soft_nc")
        return curves_figure(self.pis, self.curves)

    def to_json(self) -> str:
        """Write all of it as JSON, one line. `from_json` gives back an equal report."""
        return to_document(self, _FORMAT, _VERSION)

    @classmethod
    def from_json(cls, text: str) -> EvaluationReport:
        """Read what `to_json` wrote.

        Raises InvalidReportError where it is something else, or of a version that is not known here.
        """
        try:
            return from_document(cls, text, _FORMAT, _VERSION, "a report of an evaluation")
        except MalformedError as error:
            raise InvalidReportError(str(error)) from error
