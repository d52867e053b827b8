"""How faithful attributions of one completion are: from the question to items and a summary.

    1. whole      P and P_0 of every step: the next-token distributions of the text as it is, and emptied
    2. label      of given answers, the most probable one is what is explained
    3. explain    every method's scores at every step; the caller's own are there already
    4. change     scores become masks and rankings, these become changed texts; equal ones are one, of all methods,
                  metrics and pi alike
    5. run        in batches, steps together; of each text the distance from P and the answer stay
    6. measure    an item a step, method and metric
    7. sum up     over steps

The work is a generator: between two of its results lies one pass of bounded size, so that others can run and whoever
gave up is noticed. U are the positions that may be perturbed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradellm_engine.errors import ComputationError, InvalidRequestError
from gradellm_engine.faithfulness.curves import curve, trapezoid_weights
from gradellm_engine.faithfulness.hellinger import MIN_BASELINE, hellinger, pi_soft_nc, pi_soft_ns
from gradellm_engine.faithfulness.insertion_deletion import flip_auc, top_sets
from gradellm_engine.faithfulness.keep_probabilities import Retention, retentions, soft_retention
from gradellm_engine.faithfulness.masks import drawn, kept
from gradellm_engine.faithfulness.perturbation_runner import PassBudget, PerturbationRunner, PerturbedText
from gradellm_engine.faithfulness.rationale_agreement import average_precision, token_f1
from gradellm_engine.faithfulness.results import EvaluationItem, EvaluationSummary, MetricSummary, Point
from gradellm_engine.faithfulness.settings import EvaluatedMethod, EvaluationSettings, Metric, Perturb, Removal
from gradellm_engine.faithfulness.statistics import Interval, median, monte_carlo_intervals
from gradellm_engine.methods.post_hoc import CompletionContext
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.base import Target
from gradellm_engine.tokenization.prompts import Prompt, Role

RANDOM = "random"  # whose name differences are taken from
BATCHES_A_GROUP = 4  # of changed texts that are made before any of them runs
MADE_TEXTS = 512  # that are made before others have a turn, where few of them are new
SHORT_BISECTION = 1 << 13  # probabilities of being kept whose exponents take about as long as a pass
DRAWN = 1 << 16  # uniforms, and probabilities of being kept, that are computed at a time

Scores = NDArray[np.float64]
EvaluationEvent = float | EvaluationItem | EvaluationSummary
"""A share of the work that is done, or a result."""
Explain = Callable[[EvaluatedMethod, CompletionContext, Sequence[int]], Iterator[float | tuple[int, Tensor]]]
"""A method's scores of the whole prefix, at some steps: each with its step; and shares of that work."""


@dataclass(frozen=True)
class Text:
    """One step's text, behind what all share.

    Attributes:
        step: which.
        ids: its tokens. [T]
        places: U, counted in them. [U]
        positions: U, counted in the prefix. [U]
    """

    step: int
    ids: tuple[int, ...]
    places: NDArray[np.intp]
    positions: NDArray[np.intp]

    def zeroed(self, gone: NDArray[np.bool_]) -> PerturbedText:
        """With the embeddings of some of U zeroed. [U], bool"""
        zeros = np.zeros(len(self.ids), dtype=np.uint8)
        zeros[self.places[gone]] = 1
        return PerturbedText(self.ids, zeros.tobytes())

    def without(self, gone: NDArray[np.bool_], removal: Removal, pad_id: int) -> PerturbedText:
        """With some of U taken away. [U], bool

        Where nothing would be left, the last token stays, its embedding zeroed: a model says nothing after no text.
        """
        if removal is Removal.ZERO:
            return self.zeroed(gone)
        places = {int(place) for place in self.places[gone]}
        if removal is Removal.PAD:
            ids = tuple(pad_id if place in places else token_id for place, token_id in enumerate(self.ids))
        else:
            ids = tuple(token_id for place, token_id in enumerate(self.ids) if place not in places)
        return PerturbedText(ids, bytes(len(ids))) if ids else PerturbedText(self.ids[-1:], b"\1")


@dataclass(frozen=True)
class UnperturbedStep:
    """What the model says next at a step, before anything is changed.

    Attributes:
        P: next-token distribution. [V]
        baseline: H(P, P_0).
        answer: the predicted label's place, or the most probable token.
    """

    P: Tensor
    baseline: float
    answer: int

    @property
    def is_skipped(self) -> bool:
        """Whether emptying the text moves the distribution too little to measure anything."""
        return self.baseline < MIN_BASELINE


@dataclass(frozen=True)
class Outcome:
    """What came of a changed text.

    Attributes:
        distance: from the whole text's distribution.
        answer: see `UnperturbedStep`.
    """

    distance: float
    answer: int


@dataclass
class Measurement:
    """One metric of one attribution at one step: the texts that it needs, and what it makes of their outcomes."""

    judged: EvaluatedMethod
    metric: Metric
    scores: Scores  # [U]
    retained: list[Retention] = field(default_factory=list)
    found: list[Outcome] = field(default_factory=list)


@dataclass
class Group:
    """Changed texts that run together, for measurements of one step or of several.

    Attributes:
        wanted: which measurement needs which text of which step, in the order of its draws or ranks.
        done: steps whose texts all are in this group or in one before, with their measurements.
    """

    wanted: list[tuple[int, Measurement, PerturbedText]] = field(default_factory=list)
    done: list[tuple[int, list[Measurement]]] = field(default_factory=list)


class Evaluation:
    """One request.

    Attributes:
        allowance: how much one pass may take.
    """

    def __init__(
        self,
        runner: ModelRunner,
        prompt: Prompt,
        settings: EvaluationSettings,
        *,
        label_ids: Sequence[int],
        pad_id: int | None,
        explain: Explain,
        explain_tokens: Callable[[EvaluatedMethod, int, int], float],
        allowance: PassBudget,
    ) -> None:
        """Check what depends on the prompt.

        Args:
            runner: the model.
            prompt: its tokens.
            settings: what is asked for.
            label_ids: the labels' first tokens.
            pad_id: the tokenizer's padding token; None where it has none.
            explain: computes a method's scores.
            explain_tokens: about how many tokens that reads, for a prompt and a completion of so many tokens.
            allowance: how much one pass may take.

        Raises:
            InvalidRequestError: naming the field that is at fault.
        """
        self._runner, self._prompt, self._settings = runner, prompt, settings
        self._label_ids, self._pad_id = list(label_ids), pad_id
        self._explain, self._explain_tokens = explain, explain_tokens
        self.allowance = allowance
        self._own = self._perturbable()
        self._own_positions = np.array(self._own, dtype=np.intp)
        rationale = set(settings.rationale)
        self._rationale = np.array([token.segment in rationale for token in prompt.tokens])
        self._check_rationale()
        if settings.removal is Removal.PAD and pad_id is None and any(m.is_ranked for m in settings.metrics):
            raise InvalidRequestError("removal", "pad: this model's tokenizer has no padding token; use remove or zero")

    def check_completion(self, num_tokens: int) -> None:
        """Refuse what a completion of so many tokens cannot be asked.

        Raises:
            InvalidRequestError: naming the field that is at fault.
        """
        settings, m = self._settings, len(self._prompt.tokens)
        steps = settings.steps(num_tokens)
        if not steps:
            raise InvalidRequestError(
                "offset", f"is {settings.offset}; a completion of {num_tokens} tokens has steps 0 to {num_tokens - 1}"
            )
        for judged in settings.judged:
            for step in steps if judged.method is None else ():
                row = judged.rows.get(step)
                if row is None:
                    raise InvalidRequestError(
                        "scores", f"{judged.name!r} has no row for step {step}; steps {_listed(steps)} are evaluated"
                    )
                lengths = {m + step} if settings.perturb is Perturb.PREFIX else {m, m + step}
                if len(row) not in lengths:
                    raise InvalidRequestError(
                        "scores",
                        f"{judged.name!r} has {len(row)} scores at step {step}; one a token is needed: "
                        f"{' or '.join(str(length) for length in sorted(lengths))}",
                    )

    def work(self, given: CompletionContext) -> Iterator[EvaluationEvent]:
        """Evaluate a completion whose tokens are there."""
        if given.slot is None:
            raise ValueError("an evaluation goes on from what the completion's stream holds")
        self.check_completion(given.num_steps)
        steps = self._settings.steps(given.num_steps)
        done = _Done(self._expected_tokens(given, steps))
        runner = PerturbationRunner(self._runner, given.slot, self._first, self.allowance)
        wholes: dict[int, UnperturbedStep] = {}
        yield from self._wholes(runner, given, steps, wholes, done)
        if self._label_ids:
            answer = self._label_ids[wholes[0].answer]
            given = replace(given, targets=[Target(answer)])
        scores: dict[tuple[str, int], Scores] = {}
        yield from self._scores(given, steps, scores, done)
        items: list[EvaluationItem] = []
        outcomes: dict[tuple[int, PerturbedText], Outcome] = {}
        num_asked = 0
        for group in self._groups(given, steps, wholes, scores):
            if group is None:
                yield done.now(self.allowance)
                continue
            yield from self._outcomes(runner, group, wholes, outcomes, done)
            num_asked += len(group.wanted)
            for step, measurement, changed in group.wanted:
                measurement.found.append(outcomes[step, changed])
            for step, measurements in group.done:
                for measurement in measurements:
                    item = self._item(step, measurement, wholes[step])
                    items.append(item)
                    yield item
            steps_done = {step for step, _ in group.done}
            outcomes = {key: outcome for key, outcome in outcomes.items() if key[0] not in steps_done}
        yield from self._summary(given, steps, wholes, items, runner.num_run, num_asked)

    # What may be changed -------------------------------------------------------------------------------------------

    def _perturbable(self) -> list[int]:
        """Positions of the prompt that may be perturbed."""
        tokens, positions = self._prompt.tokens, self._settings.positions
        if positions:
            if len(set(positions)) < len(positions) or not all(0 <= position < len(tokens) for position in positions):
                raise InvalidRequestError(
                    "perturb_positions", f"must be places of the prompt's {len(tokens)} tokens, each once, from 0 on"
                )
            return sorted(positions)
        if self._settings.perturb is not Perturb.USER:
            return list(range(len(tokens)))
        self._prompt.check_user_text("perturb")
        return [i for i, token in enumerate(tokens) if token.role is Role.USER and not token.special]

    def _check_rationale(self) -> None:
        settings = self._settings
        known = {token.segment for token in self._prompt.tokens}
        for name in settings.rationale:
            if name not in known:
                raise InvalidRequestError(
                    "rationale",
                    f"{name!r} is not a segment of the input that holds a token; segments are "
                    f"{', '.join(sorted(s for s in known if s)) or 'none'}",
                )
        if settings.rationale and not 0 < self._rationale[self._own].sum() < len(self._own):
            raise InvalidRequestError(
                "rationale", f"must hold some of the {len(self._own)} tokens that may be perturbed, and not all of them"
            )

    @property
    def _first(self) -> int:
        """Where changed texts begin: a token before the first that may change, so that some text is always left."""
        return max(0, self._own[0] - 1)

    def _text(self, given: CompletionContext, step: int) -> Text:
        end = given.prefix(step)
        at = self._own_positions
        if self._settings.perturb is Perturb.PREFIX:
            at = np.concatenate([at, np.arange(given.num_prompt_tokens, end, dtype=np.intp)])
        return Text(step, tuple(given.ids[self._first : end]), at - self._first, at)

    # The model -----------------------------------------------------------------------------------------------------

    def _wholes(
        self,
        runner: PerturbationRunner,
        given: CompletionContext,
        steps: Sequence[int],
        wholes: dict[int, UnperturbedStep],
        done: _Done,
    ) -> Iterator[float]:
        """P and P_0 of all steps, so many at a time that batches are full."""
        texts: list[Text] = []
        for step in steps:
            texts.append(self._text(given, step))
            num_tokens = 2 * sum(len(text.ids) for text in texts)
            if num_tokens < BATCHES_A_GROUP * self.allowance.most and step != steps[-1]:
                continue
            changed = [text.zeroed(np.full(len(text.places), is_empty)) for text in texts for is_empty in (False, True)]
            found: dict[int, Tensor] = {}  # whose other is still to come: a step's two run one after the other
            for places, probs in runner.run(changed):
                _check_finite(probs)
                found.update(zip(places, probs, strict=True))
                for i in {place // 2 for place in places}:
                    if 2 * i in found and 2 * i + 1 in found:
                        # Copied, for a row of the batch would hold all of it.
                        P, P_0 = found.pop(2 * i).clone(), found.pop(2 * i + 1)
                        wholes[texts[i].step] = UnperturbedStep(P, float(hellinger(P, P_0)), self._answers(P[None])[0])
                yield done.now(self.allowance)
            texts = []

    def _answers(self, probs: Tensor) -> list[int]:
        """[B, V]"""
        answers: list[int] = (probs[:, self._label_ids] if self._label_ids else probs).argmax(-1).tolist()
        return answers

    def _scores(
        self, given: CompletionContext, steps: Sequence[int], scores: dict[tuple[str, int], Scores], done: _Done
    ) -> Iterator[float]:
        """Every attribution's scores of U at every step, by name and step."""
        positions = {step: self._text(given, step).positions for step in steps}
        for judged in self._settings.judged:
            if judged.method is None:
                for step, at in positions.items():
                    scores[judged.name, step] = np.asarray(judged.rows[step], dtype=np.float64)[at]
                continue
            share = self._explain_tokens(judged, given.num_prompt_tokens, given.num_steps)
            for result in self._explain(judged, given, list(positions)):
                if isinstance(result, float):
                    yield done.with_part(share * result)
                    continue
                step, row = result
                if step in positions:
                    its = row.detach().double().cpu().numpy()[positions[step]]
                    if not np.isfinite(its).all():
                        raise ComputationError(
                            f"{judged.name}'s attribution of token {step} is not finite: the model's numbers overflow"
                        )
                    scores[judged.name, step] = its
            done.add(share)

    def _groups(
        self,
        given: CompletionContext,
        steps: Sequence[int],
        wholes: Mapping[int, UnperturbedStep],
        scores: Mapping[tuple[str, int], Scores],
    ) -> Iterator[Group | None]:
        """What is run, so many texts at a time that batches are full; None where others should have a turn before.

        Texts are made as batches need them: all of a step's at once would hold up whoever waits for the engine.
        """
        group, num_tokens = Group(), 0
        num_made = 0  # since others had a turn
        for step in steps:
            text = self._text(given, step)
            measurements = self._measurements(text, wholes[step], scores)
            for made in self._texts(text, measurements):
                if made is None:
                    yield None
                    continue
                group.wanted.append((step, *made))
                num_tokens += len(made[1])
                num_made += 1
                if num_tokens >= BATCHES_A_GROUP * self.allowance.most:
                    yield group
                    group, num_tokens, num_made = Group(), 0, 0
                elif num_made >= MADE_TEXTS:
                    num_made = 0
                    yield None
            group.done.append((step, measurements))
        yield group

    def _measurements(
        self, text: Text, whole: UnperturbedStep, scores: Mapping[tuple[str, int], Scores]
    ) -> list[Measurement]:
        """A step's."""
        return [
            Measurement(judged, metric, scores[judged.name, text.step])
            for judged in self._settings.judged
            for metric in self._settings.metrics
            if not (metric.is_soft and whole.is_skipped)
        ]

    def _texts(
        self, text: Text, measurements: Sequence[Measurement]
    ) -> Iterator[tuple[Measurement, PerturbedText] | None]:
        """The texts that a step's measurements need, one by one; None where others should have a turn before."""
        settings = self._settings
        for measurement in measurements:
            if measurement.metric.is_ranked:
                for chosen in top_sets(measurement.scores, settings.seed, text.step):
                    yield measurement, self._without(text, chosen, measurement.metric)
        for has_pis in (True, False):
            soft = [m for m in measurements if m.metric.is_soft and m.metric.has_pis is has_pis]
            if soft:
                yield from self._soft_texts(text, soft, settings.pis if has_pis else (None,))

    def _soft_texts(
        self, text: Text, measurements: Sequence[Measurement], pis: Sequence[float | None]
    ) -> Iterator[tuple[Measurement, PerturbedText] | None]:
        """Texts of masks: draws are one for all measurements, exponents one for NS and NC."""
        settings, size = self._settings, len(text.places)
        by_name: dict[str, list[Measurement]] = {}
        for measurement in measurements:
            by_name.setdefault(measurement.judged.name, []).append(measurement)
        block = max(1, DRAWN // max(1, size))  # rows of U
        for first in range(0, len(pis), block):
            its_pis = pis[first : first + block]
            for several in by_name.values():
                scores = several[0].scores
                known = [pi for pi in its_pis if pi is not None]
                retained = retentions(scores, known) if known else (soft_retention(scores, settings.raw_scores),)
                for measurement in several:
                    measurement.retained += retained
                if size * len(its_pis) > SHORT_BISECTION:
                    yield None
            rows = [(index, sample) for index in range(len(its_pis)) for sample in range(settings.samples)]
            for begin in range(0, len(rows), block):
                some = rows[begin : begin + block]
                draws = drawn(settings.seed, text.step, [(its_pis[index], sample) for index, sample in some], size)
                indexes = [first + index for index, _ in some]
                for several in by_name.values():
                    probs = np.stack([several[0].retained[index].probs for index in indexes])
                    masks = kept(draws[:, None], probs)[:, 0]
                    for measurement in several:
                        for mask in ~masks if measurement.metric.keeps else masks:
                            yield measurement, text.zeroed(mask)

    def _without(self, text: Text, chosen: NDArray[np.intp], metric: Metric) -> PerturbedText:
        """What deletion leaves of a text where some of U are chosen, or insertion has put there."""
        gone = np.full(len(text.places), metric is Metric.INSERTION)
        gone[chosen] = metric is Metric.DELETION
        return text.without(gone, self._settings.removal, self._pad_id or 0)

    def _outcomes(
        self,
        runner: PerturbationRunner,
        group: Group,
        wholes: Mapping[int, UnperturbedStep],
        outcomes: dict[tuple[int, PerturbedText], Outcome],
        done: _Done,
    ) -> Iterator[float]:
        """Run a group's texts, each once."""
        keys = list(dict.fromkeys((step, text) for step, _, text in group.wanted if (step, text) not in outcomes))
        for places, probs in runner.run([changed for _, changed in keys]):
            _check_finite(probs)
            P = torch.stack([wholes[keys[place][0]].P for place in places])
            distances, answers = hellinger(P, probs).tolist(), self._answers(probs)
            for place, distance, answer in zip(places, distances, answers, strict=True):
                outcomes[keys[place]] = Outcome(distance, answer)
            yield done.now(self.allowance)

    # What comes of it ----------------------------------------------------------------------------------------------

    def _item(self, step: int, measurement: Measurement, whole: UnperturbedStep) -> EvaluationItem:
        metric, name, found = measurement.metric, measurement.judged.name, measurement.found
        if metric.is_soft:
            distances = np.array([outcome.distance for outcome in found]).reshape(len(measurement.retained), -1)
            samples = (pi_soft_ns if metric.keeps else pi_soft_nc)(distances, whole.baseline)  # [P, N]
            means = curve(samples)
            points = tuple(
                Point(each.pi, each.achieved, each.alpha, tuple(row.tolist()), float(mean))
                for each, row, mean in zip(measurement.retained, samples, means, strict=True)
            )
            expected = None if metric.has_pis else measurement.retained[0].expected_tokens
            return EvaluationItem(
                step, name, metric, float(self._weights(metric) @ means), points, expected_tokens=expected
            )
        if metric.is_ranked:
            flips = np.array([outcome.answer != whole.answer for outcome in found])
            return EvaluationItem(step, name, metric, flip_auc(flips), flips=tuple(flips.tolist()))
        rationale = np.zeros(len(measurement.scores), dtype=np.bool_)
        rationale[: len(self._own)] = self._rationale[self._own]
        if metric is Metric.AUPRC:
            value = average_precision(measurement.scores, rationale)
        else:
            value = token_f1(measurement.scores, rationale, self._settings.seed, step)
        return EvaluationItem(step, name, metric, value)

    def _weights(self, metric: Metric) -> NDArray[np.float64]:
        """What each point counts in a metric's value: an area where there are several. [P]"""
        pis = self._settings.pis
        return trapezoid_weights(pis) if metric.has_pis and len(pis) > 1 else np.ones(1)

    def _summary(
        self,
        given: CompletionContext,
        steps: Sequence[int],
        wholes: Mapping[int, UnperturbedStep],
        items: Sequence[EvaluationItem],
        num_run: int,
        num_asked: int,
    ) -> Iterator[float | EvaluationSummary]:
        """What they come to; intervals take time, which others have their turns in."""
        measured: dict[Metric, dict[str, list[EvaluationItem]]] = {}
        for metric in self._settings.metrics:
            for item in items:
                if item.metric is metric:
                    measured.setdefault(metric, {}).setdefault(item.name, []).append(item)
        metrics: list[MetricSummary] = []
        intervals: dict[Metric, list[Interval]] = {}
        for has_pis in (True, False):
            soft = [metric for metric in measured if metric.is_soft and metric.has_pis is has_pis]
            intervals |= self._soft_intervals({metric: measured[metric] for metric in soft})
            yield 1.0
        for metric, by_name in measured.items():
            metrics += self._metric_summaries(metric, by_name, intervals.get(metric))
        first = wholes[steps[0]]
        yield EvaluationSummary(
            metrics=tuple(metrics),
            steps=tuple(steps),
            skipped=tuple(step for step in steps if wholes[step].is_skipped),
            label=first.answer if self._label_ids else None,
            is_outside=bool(self._label_ids) and int(first.P.argmax()) not in self._label_ids,
            num_perturbable=len(self._text(given, steps[0]).places),
            num_sequences=num_run,
            num_asked=num_asked + 2 * len(steps),
        )

    def _soft_intervals(
        self, measured: Mapping[Metric, Mapping[str, Sequence[EvaluationItem]]]
    ) -> dict[Metric, list[Interval]]:
        """Of metrics over the same draws, which are resampled alike: every attribution's, and their gains on random."""
        if not measured:
            return {}
        samples: dict[Metric, list[Scores]] = {}  # [steps P, N] each
        for metric, by_name in measured.items():
            its = {name: _samples(items) for name, items in by_name.items()}
            samples[metric] = [*its.values(), *(its[name] - its[RANDOM] for name in _compared(its))]
        metric, by_name = next(iter(measured.items()))
        steps = len(next(iter(by_name.values())))
        weights = np.tile(self._weights(metric), steps) / steps
        found = iter(monte_carlo_intervals(np.stack([*chain(*samples.values())]), weights, self._settings.seed))
        return {metric: [*islice(found, len(rows))] for metric, rows in samples.items()}

    @staticmethod
    def _metric_summaries(
        metric: Metric, by_name: Mapping[str, Sequence[EvaluationItem]], intervals: Sequence[Interval] | None
    ) -> Iterator[MetricSummary]:
        """One metric of every attribution, whose items are of the same steps; and their intervals, where it has any."""
        names, compared = list(by_name), _compared(by_name)
        if intervals is None:
            values = {name: float(np.mean([item.value for item in its])) for name, its in by_name.items()}
            means = [*values.values(), *(values[name] - values[RANDOM] for name in compared)]
            intervals = [Interval(mean, None, None, "monte_carlo", 1) for mean in means]
        differences = dict(zip(compared, intervals[len(names) :], strict=True))
        for name, interval in zip(names, intervals, strict=False):
            its = by_name[name]
            expected = [item.expected_tokens for item in its if item.expected_tokens is not None]
            curves = [[point.mean for point in item.points] for item in its]
            yield MetricSummary(
                name=name,
                metric=metric,
                interval=interval,
                median=median(np.array([item.value for item in its])),
                difference=differences.get(name),
                curve=tuple(np.mean(curves, axis=0).tolist()) if metric.has_pis else (),
                expected_tokens=float(np.mean(expected)) if expected else None,
                steps=len(its),
            )

    def _expected_tokens(self, given: CompletionContext, steps: Sequence[int]) -> float:
        """About how many tokens are read in all."""
        own = sum(given.prefix(step) - self._first for step in steps) * (2 + self._settings.sequences_a_step)
        methods = (
            self._explain_tokens(judged, given.num_prompt_tokens, given.num_steps)
            for judged in self._settings.judged
            if judged.method is not None
        )
        return own + sum(methods)


@dataclass
class _Done:
    """How much of the work is done.

    Attributes:
        total: tokens that are read in all, about.
        explained: of those, by methods that have ended.
    """

    total: float
    explained: float = 0.0
    _read: int = 0

    def now(self, allowance: PassBudget) -> float:
        """The share."""
        self._read = allowance.used
        return self.with_part(0.0)

    def with_part(self, tokens: float) -> float:
        """The share, with a part of a method that runs."""
        return min(1.0, (self.explained + tokens + self._read) / max(1.0, self.total))

    def add(self, tokens: float) -> None:
        """A method has ended."""
        self.explained += tokens


def _compared(names: Collection[str]) -> list[str]:
    """Whose difference from random is told."""
    return [name for name in names if name != RANDOM] if RANDOM in names else []


def _samples(items: Sequence[EvaluationItem]) -> NDArray[np.float64]:
    """A row for each step and point. [steps P, N]"""
    return np.array([point.samples for item in items for point in item.points])


def _check_finite(probs: Tensor) -> None:
    if not probs.isfinite().all():
        raise ComputationError("the model returned logits that are not finite for a changed text")


def _listed(steps: range) -> str:
    return f"{steps.start}, {steps.start + steps.step} .. {steps[-1]}" if len(steps) > 2 else ", ".join(map(str, steps))
