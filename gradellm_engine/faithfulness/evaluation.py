"""One request's evaluation: how faithful the attributions of one completion are, as items and a summary.

    1. unperturbed  P and P_0 of every step: the next-token distributions of the text, and of the text with U zeroed
    2. target       with labels, the most probable label's first token is what methods explain
    3. explain      every method's scores at every step; the caller's own scores come with the request
    4. perturb      scores become masks and top sets, these become perturbed texts; equal texts of a step run once,
                    whatever methods, metrics and pis need them
    5. run          the texts in batches; of each, the distance from P and the answer are kept
    6. measure      an item for each step, method and metric
    7. summarize    over steps

U is the set of perturbable tokens; docs/methods/metrics.md defines the metrics.

`Evaluation.run` is a generator, which does at most one pass of bounded size between two results. The scheduler runs
other requests in between, and a cancelled evaluation ends there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from gradellm_engine.errors import ComputationError, InvalidRequestError
from gradellm_engine.faithfulness.measurements import Measurement, Outcome, Scores, UnperturbedStep
from gradellm_engine.faithfulness.metrics.hellinger import hellinger
from gradellm_engine.faithfulness.metrics.statistics import Interval
from gradellm_engine.faithfulness.pass_budget import PassBudget, ProgressTracker
from gradellm_engine.faithfulness.perturbable_tokens import PerturbableTokens
from gradellm_engine.faithfulness.perturbation_runner import PerturbationRunner
from gradellm_engine.faithfulness.perturbations import TextBatch, text_batches
from gradellm_engine.faithfulness.perturbed_text import PerturbedText, StepText
from gradellm_engine.faithfulness.results import EvaluationEvent, EvaluationItem, EvaluationSummary, MetricSummary
from gradellm_engine.faithfulness.settings import EvaluatedMethod, EvaluationSettings, Metric, Perturb, Removal
from gradellm_engine.faithfulness.summary import items_by_metric, metric_summaries, soft_intervals
from gradellm_engine.methods.post_hoc import CompletionContext
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.passes.base import Target
from gradellm_engine.tokenization.prompt import Prompt

Explain = Callable[[EvaluatedMethod, CompletionContext, Sequence[int]], Iterator[float | tuple[int, Tensor]]]
"""A method's scores of the whole prefix at some steps, as (step, scores [m + t]); and shares of that work."""


class Evaluation:
    """An evaluation request."""

    def __init__(
        self,
        runner: ModelRunner,
        prompt: Prompt,
        settings: EvaluationSettings,
        *,
        label_ids: Sequence[int],
        pad_id: int | None,
        explain: Explain,
        explain_tokens: Callable[[EvaluatedMethod, int, int, int], float],
        pass_budget: PassBudget,
    ) -> None:
        """Check the settings that depend on the prompt.

        Args:
            runner: runs the model.
            prompt: the prompt.
            settings: the request's settings.
            label_ids: first token of each label.
            pad_id: the tokenizer's padding token; None where it has none.
            explain: computes a method's scores.
            explain_tokens: estimates how many tokens that reads, from the numbers of prompt tokens, completion tokens
                and steps.
            pass_budget: limits of one pass.

        Raises:
            InvalidRequestError: naming the field.
        """
        self._runner, self._prompt, self._settings = runner, prompt, settings
        self._label_ids, self._pad_id = list(label_ids), pad_id
        self._explain, self._explain_tokens = explain, explain_tokens
        self._pass_budget = pass_budget
        self._perturbable = PerturbableTokens(prompt, settings)
        if settings.removal is Removal.PAD and pad_id is None and any(m.is_ranked for m in settings.metrics):
            raise InvalidRequestError("removal", "pad: this model's tokenizer has no padding token; use remove or zero")

    def check_completion(self, num_tokens: int) -> None:
        """Refuse a completion of `num_tokens` that has no step to evaluate, or lacks the caller's scores of one.

        Raises:
            InvalidRequestError: naming the field.
        """
        settings, m = self._settings, len(self._prompt.tokens)
        steps = settings.steps(num_tokens)
        if not steps:
            raise InvalidRequestError(
                "offset", f"is {settings.offset}; a completion of {num_tokens} tokens has steps 0 to {num_tokens - 1}"
            )
        for evaluated in settings.methods:
            for step in steps if evaluated.method is None else ():
                row = evaluated.rows.get(step)
                if row is None:
                    raise InvalidRequestError(
                        "scores",
                        f"{evaluated.name!r} has no row for step {step}; steps {_step_list(steps)} are evaluated",
                    )
                lengths = {m + step} if settings.perturb is Perturb.PREFIX else {m, m + step}
                if len(row) not in lengths:
                    raise InvalidRequestError(
                        "scores",
                        f"{evaluated.name!r} has {len(row)} scores at step {step}; one a token is needed: "
                        f"{' or '.join(str(length) for length in sorted(lengths))}",
                    )

    def run(self, completion: CompletionContext) -> Iterator[EvaluationEvent]:
        """Evaluate a completion; its KV slot holds all of its tokens but the last.

        Yields:
            Items as steps are complete, shares of the work that is done, and the summary at the end.
        """
        if completion.slot is None:
            raise ValueError("an evaluation needs the KV slot of its completion")
        self.check_completion(completion.num_steps)
        steps = self._settings.steps(completion.num_steps)
        progress = ProgressTracker(self._pass_budget, self._expected_tokens(completion, steps))
        runner = PerturbationRunner(self._runner, completion.slot, self._perturbable.prefix_length, self._pass_budget)
        unperturbed = yield from self._run_unperturbed(runner, completion, steps, progress)
        if self._label_ids:
            completion = replace(completion, targets=[Target(self._label_ids[unperturbed[0].answer])])
        scores = yield from self._explain_steps(completion, steps, progress)
        items: list[EvaluationItem] = []
        outcomes: dict[tuple[int, PerturbedText], Outcome] = {}
        num_requested = 2 * len(steps)
        measurements = self._measurements(completion, steps, unperturbed, scores)
        for batch in text_batches(measurements, self._settings, self._pad_id or 0, self._pass_budget):
            if batch is None:
                yield progress.share()
                continue
            yield from self._run_batch(runner, batch, unperturbed, outcomes, progress)
            num_requested += len(batch.texts)
            for step, measurement, text in batch.texts:
                measurement.outcomes.append(outcomes[step, text])
            for item in self._items(batch, unperturbed):
                items.append(item)
                yield item
            completed = {step for step, _ in batch.completed}
            outcomes = {key: outcome for key, outcome in outcomes.items() if key[0] not in completed}
        metrics = yield from self._metric_summaries(items)
        first = unperturbed[steps[0]]
        yield EvaluationSummary(
            metrics=metrics,
            steps=tuple(steps),
            skipped=tuple(step for step in steps if unperturbed[step].is_skipped),
            label=first.answer if self._label_ids else None,
            is_outside=bool(self._label_ids) and int(first.P.argmax()) not in self._label_ids,
            num_perturbable=len(self._perturbable.step_text(completion, steps[0]).indexes),
            num_sequences=runner.num_run,
            num_requested=num_requested,
        )

    def _expected_tokens(self, completion: CompletionContext, steps: Sequence[int]) -> float:
        """Estimate of the tokens that all passes of the evaluation read."""
        shared = self._perturbable.prefix_length
        lengths = sum(completion.prefix_length(step) - shared for step in steps)
        methods = (
            self._explain_tokens(evaluated, completion.num_prompt_tokens, completion.num_steps, len(steps))
            for evaluated in self._settings.methods
            if evaluated.method is not None
        )
        return lengths * (2 + self._settings.texts_per_step) + sum(methods)

    def _run_unperturbed(
        self, runner: PerturbationRunner, completion: CompletionContext, steps: Sequence[int], progress: ProgressTracker
    ) -> Generator[float, None, dict[int, UnperturbedStep]]:
        """P and P_0 of all steps, by step."""
        unperturbed: dict[int, UnperturbedStep] = {}
        texts: list[StepText] = []
        for step in steps:
            texts.append(self._perturbable.step_text(completion, step))
            num_tokens = 2 * sum(len(text.ids) for text in texts)
            if num_tokens < self._pass_budget.batch_tokens and step != steps[-1]:
                continue
            pairs = [text.zeroed(np.full(len(text.indexes), is_empty)) for text in texts for is_empty in (False, True)]
            waiting: dict[int, Tensor] = {}  # distributions whose pair is not complete: a pair may lie in two passes
            for indexes, probs in runner.run(pairs):
                _check_finite(probs)
                waiting.update(zip(indexes, probs, strict=True))
                for i in {index // 2 for index in indexes}:
                    if 2 * i in waiting and 2 * i + 1 in waiting:
                        # A row is a view that would keep the pass's whole output alive.
                        P, P_0 = waiting.pop(2 * i).clone(), waiting.pop(2 * i + 1)
                        baseline, (answer,) = float(hellinger(P, P_0)), self._answers(P[None])
                        unperturbed[texts[i].step] = UnperturbedStep(P, baseline, answer)
                yield progress.share()
            texts = []
        return unperturbed

    def _explain_steps(
        self, completion: CompletionContext, steps: Sequence[int], progress: ProgressTracker
    ) -> Generator[float, None, dict[tuple[str, int], Scores]]:
        """Every method's scores of U at every step, by the method's name and the step."""
        scores: dict[tuple[str, int], Scores] = {}
        positions = {step: self._perturbable.step_text(completion, step).positions for step in steps}
        for evaluated in self._settings.methods:
            if evaluated.method is None:
                for step in steps:
                    row = np.asarray(evaluated.rows[step], dtype=np.float64)
                    scores[evaluated.name, step] = row[positions[step]]
                continue
            num_tokens = self._explain_tokens(evaluated, completion.num_prompt_tokens, completion.num_steps, len(steps))
            for result in self._explain(evaluated, completion, list(steps)):
                if isinstance(result, float):
                    yield progress.share(result * num_tokens)
                    continue
                step, prefix_scores = result
                selected = prefix_scores.detach().double().cpu().numpy()[positions[step]]
                if not np.isfinite(selected).all():
                    raise ComputationError(
                        f"the scores of {evaluated.name} at step {step} are not finite: "
                        "the model's activations or gradients overflow"
                    )
                scores[evaluated.name, step] = selected
            progress.end_method(num_tokens)
        return scores

    def _measurements(
        self,
        completion: CompletionContext,
        steps: Sequence[int],
        unperturbed: Mapping[int, UnperturbedStep],
        scores: Mapping[tuple[str, int], Scores],
    ) -> Iterator[tuple[StepText, list[Measurement]]]:
        """Each step's text and measurements; soft metrics are left out of skipped steps."""
        for step in steps:
            yield (
                self._perturbable.step_text(completion, step),
                [
                    Measurement(evaluated.name, metric, scores[evaluated.name, step])
                    for evaluated in self._settings.methods
                    for metric in self._settings.metrics
                    if not (metric.is_soft and unperturbed[step].is_skipped)
                ],
            )

    def _run_batch(
        self,
        runner: PerturbationRunner,
        batch: TextBatch,
        unperturbed: Mapping[int, UnperturbedStep],
        outcomes: dict[tuple[int, PerturbedText], Outcome],
        progress: ProgressTracker,
    ) -> Iterator[float]:
        """Add the outcomes of a batch's texts to `outcomes`; a text that has one is not run again."""
        keys = list(dict.fromkeys((step, text) for step, _, text in batch.texts if (step, text) not in outcomes))
        for indexes, probs in runner.run([text for _, text in keys]):
            _check_finite(probs)
            P = torch.stack([unperturbed[keys[index][0]].P for index in indexes])
            distances, answers = hellinger(P, probs).tolist(), self._answers(probs)
            for index, distance, answer in zip(indexes, distances, answers, strict=True):
                outcomes[keys[index]] = Outcome(distance, answer)
            yield progress.share()

    def _answers(self, probs: Tensor) -> list[int]:
        """The most probable label's index, or without labels the most probable token. [B, V] -> [B]"""
        answers: list[int] = (probs[:, self._label_ids] if self._label_ids else probs).argmax(-1).tolist()
        return answers

    def _items(self, batch: TextBatch, unperturbed: Mapping[int, UnperturbedStep]) -> Iterator[EvaluationItem]:
        """Items of the steps that a batch completes."""
        for step, measurements in batch.completed:
            for measurement in measurements:
                rationale = self._perturbable.rationale(len(measurement.scores))
                yield measurement.item(step, unperturbed[step], rationale, self._settings)

    def _metric_summaries(self, items: Sequence[EvaluationItem]) -> Generator[float, None, tuple[MetricSummary, ...]]:
        """Summaries over steps; yields a pause after each resampling, which takes long."""
        by_metric = items_by_metric(items, self._settings.metrics)
        intervals: dict[Metric, list[Interval]] = {}
        for has_pis in (True, False):
            soft = {m: by_metric[m] for m in by_metric if m.is_soft and m.has_pis is has_pis}
            intervals |= soft_intervals(soft, self._settings)
            yield 1.0
        return tuple(
            summary
            for metric, by_method in by_metric.items()
            for summary in metric_summaries(metric, by_method, intervals.get(metric))
        )


def _check_finite(probs: Tensor) -> None:
    if not probs.isfinite().all():
        raise ComputationError(
            "the model's logits after a perturbed text are not finite: its activations overflow in this dtype"
        )


def _step_list(steps: range) -> str:
    return f"{steps.start}, {steps.start + steps.step} .. {steps[-1]}" if len(steps) > 2 else ", ".join(map(str, steps))
