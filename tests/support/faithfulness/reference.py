"""Reference of the faithfulness metrics (docs/methods/metrics.md), one perturbed text at a time, in plain Python.

Each text runs as a whole through Transformers' own model in float64 with eager attention, without cache, batches or
reuse of equal texts. Only conventions come from gradellm_engine (the uniforms of masks, the permutation that breaks
ties), the settings, and the tokens of the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from gradellm_engine import EvaluationSettings, Metric, Perturb, Prompt, Removal
from gradellm_engine.faithfulness.metrics import masks
from gradellm_engine.utils.rng import stream

Probs = NDArray[np.float64]
Rows = dict[tuple[str, int], Sequence[float]]
"""Scores of the whole prefix, by name and step."""


@dataclass
class Answer:
    """A predicted label or token, and its margin of probability to the next one."""

    index: int
    margin: float


@dataclass
class Measured:
    """One metric of one attribution at one step.

    Attributes:
        value: the metric.
        samples: of soft metrics, by pi. [P][N]
        achieved: of soft metrics, the mean retaining probability, by pi. [P]
        alphas: of soft metrics, the powers that scores were raised to, by pi. [P]
        flips: of insertion and deletion. [20]
        margins: the smaller margin of the two answers that a flip compares. [20]
    """

    value: float
    samples: list[list[float]]
    achieved: list[float]
    alphas: list[float]
    flips: list[bool]
    margins: list[float]


class Reference:
    """A model in float64 with eager attention, and the metrics on it."""

    def __init__(self, path: Path) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="eager")
        self.model.eval()
        with suppress(AttributeError, ValueError):
            self.model.set_experts_implementation("eager")  # the default refuses float64
        self.num_passes = 0

    def probs(self, ids: Sequence[int], zeroed: Sequence[int] = ()) -> Probs:
        """The next-token distribution after a text, with the embeddings at some positions zeroed. [V]"""
        self.num_passes += 1
        with torch.no_grad():
            embeddings = self.model.get_input_embeddings()(torch.tensor([list(ids)]))
            for position in zeroed:
                embeddings[0, position] = 0.0
            positions = torch.arange(len(ids))[None]
            output = self.model(inputs_embeds=embeddings, position_ids=positions, use_cache=False)
        logits = output.logits[0, -1].numpy()
        weights = np.exp(logits - logits.max())
        return np.asarray(weights / weights.sum())

    def evaluate(
        self,
        prompt: Prompt,
        completion: Sequence[int],
        settings: EvaluationSettings,
        rows: Rows,
        label_ids: Sequence[int] = (),
        pad_id: int = 0,
    ) -> Evaluated:
        """Every metric of every method at every step."""
        steps = [0] if label_ids else list(range(settings.offset, len(completion), settings.stride))
        evaluated = Evaluated(steps=steps)
        for step in steps:
            text = [*prompt.ids, *completion[:step]]
            changed = sorted(settings.positions) or perturbable(prompt, settings.perturb, len(text))
            P, P_0 = self.probs(text), self.probs(text, changed)
            baseline = hellinger(P, P_0)
            unperturbed = answer(P, label_ids)
            evaluated.num_perturbable_at[step] = len(changed)
            if step == steps[0]:
                evaluated.label = unperturbed.index if label_ids else None
                evaluated.is_outside = bool(label_ids) and int(np.argmax(P)) not in label_ids
            if baseline < 1e-6:
                evaluated.skipped.append(step)
            for evaluated_method in settings.methods:
                scores = [float(rows[evaluated_method.name, step][position]) for position in changed]
                for metric in settings.metrics:
                    if metric in (Metric.AUPRC, Metric.TOKEN_F1):
                        reason = [
                            position < len(prompt.tokens) and prompt.tokens[position].segment in settings.rationale
                            for position in changed
                        ]
                        value = (
                            average_precision(scores, reason)
                            if metric is Metric.AUPRC
                            else f1(scores, reason, settings.seed, step)
                        )
                        measured = Measured(value, [], [], [], [], [])
                    elif metric in (Metric.INSERTION, Metric.DELETION):
                        measured = self.ranked(
                            metric, scores, text, changed, unperturbed, settings, step, label_ids, pad_id
                        )
                    elif baseline < 1e-6:
                        continue
                    else:
                        measured = self.soft(metric, scores, text, changed, P, baseline, settings, step)
                    evaluated.measured[step, evaluated_method.name, metric] = measured
        return evaluated

    def soft(
        self,
        metric: Metric,
        scores: list[float],
        text: list[int],
        changed: list[int],
        P: Probs,
        baseline: float,
        settings: EvaluationSettings,
        step: int,
    ) -> Measured:
        """A soft metric (eqs 14, 17, 18 and 20)."""
        n, keeps = len(changed), metric in (Metric.PI_SOFT_NS, Metric.SOFT_NS)
        if metric in (Metric.SOFT_NS, Metric.SOFT_NC):
            clipped = [min(1.0, max(0.0, score)) for score in scores]
            probs = [clipped if settings.raw_scores else min_max(scores)]
            alphas = [1.0]
            draws = masks.soft_uniforms(settings.seed, step, settings.samples, n)[None]
        else:
            s = min_max(scores)
            alphas = [alpha_of(s, pi) for pi in settings.pis]
            probs = [[score**alpha for score in s] for alpha in alphas]
            draws = masks.uniforms(settings.seed, step, settings.pis, settings.samples, n)
        samples: list[list[float]] = []
        for k, probabilities in enumerate(probs):
            samples.append([])
            for sample in range(settings.samples):
                drawn = [bool(draws[k, sample, i] < probabilities[i]) for i in range(n)]
                zeroed = [changed[i] for i in range(n) if drawn[i] != keeps]
                H = hellinger(P, self.probs(text, zeroed))
                samples[-1].append(max(0.0, baseline - H) / baseline if keeps else H / baseline)
        means = [sum(row) / len(row) for row in samples]
        if metric in (Metric.SOFT_NS, Metric.SOFT_NC) or len(means) == 1:
            (value,) = means
        else:
            value = sum(
                (settings.pis[k + 1] - settings.pis[k]) * (means[k] + means[k + 1]) / 2 for k in range(len(means) - 1)
            )
        achieved = [sum(probabilities) / n for probabilities in probs]
        return Measured(value, samples, achieved, alphas, [], [])

    def ranked(
        self,
        metric: Metric,
        scores: list[float],
        text: list[int],
        changed: list[int],
        unperturbed: Answer,
        settings: EvaluationSettings,
        step: int,
        label_ids: Sequence[int],
        pad_id: int,
    ) -> Measured:
        """Insertion or deletion (appendix C)."""
        order = ranking(scores, settings.seed, step)
        flips, margins = [], []
        for j in range(1, 21):
            top = {changed[i] for i in order[: math.ceil(j * len(changed) / 20)]}
            gone = top if metric is Metric.DELETION else set(changed) - top
            if settings.removal is Removal.ZERO:
                P = self.probs(text, sorted(gone))
            elif settings.removal is Removal.PAD:
                P = self.probs([pad_id if place in gone else text[place] for place in range(len(text))])
            elif len(gone) < len(text):
                P = self.probs([text[place] for place in range(len(text)) if place not in gone])
            else:
                P = self.probs(text[-1:], [0])
            predicted = answer(P, label_ids)
            flips.append(predicted.index != unperturbed.index)
            margins.append(min(predicted.margin, unperturbed.margin))
        return Measured(sum(flips) / 20, [], [], [], flips, margins)


class Evaluated:
    """Results of an evaluation."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = steps
        self.skipped: list[int] = []
        self.label: int | None = None
        self.is_outside = False
        self.num_perturbable_at: dict[int, int] = {}
        self.measured: dict[tuple[int, str, Metric], Measured] = {}

    def of(self, name: str, metric: Metric) -> list[Measured]:
        """One metric of one method, step by step."""
        return [measured for (_, *key), measured in self.measured.items() if key == [name, metric]]


def perturbable(prompt: Prompt, perturb: Perturb, num_tokens: int) -> list[int]:
    """U, as positions."""
    if perturb is Perturb.USER:
        return [i for i, token in enumerate(prompt.tokens) if token.role == "user" and not token.special]
    return list(range(len(prompt.tokens) if perturb is Perturb.PROMPT else num_tokens))


def min_max(scores: Sequence[float]) -> list[float]:
    """Scores min-maxed and clipped to [1e-6, 1 - 1e-6]; constant scores become 1/2."""
    low, high = min(scores), max(scores)
    if low == high:
        return [0.5] * len(scores)
    return [min(1 - 1e-6, max(1e-6, (score - low) / (high - low))) for score in scores]


def alpha_of(s: Sequence[float], pi: float) -> float:
    """The alpha of eq 19, by bisection on log(alpha)."""
    low, high = -60.0, 60.0
    for _ in range(200):
        middle = (low + high) / 2
        if sum(score ** math.exp(middle) for score in s) / len(s) > pi:
            low = middle  # too much is kept
        else:
            high = middle
    return math.exp(low)


def hellinger(P: Probs, Q: Probs) -> float:
    """The Hellinger distance (eq 16)."""
    return math.sqrt(sum((math.sqrt(p) - math.sqrt(q)) ** 2 for p, q in zip(P, Q, strict=True)) / 2)


def answer(P: Probs, label_ids: Sequence[int]) -> Answer:
    """The most probable label by its first token, or without labels the most probable token."""
    chosen = [float(P[token_id]) for token_id in label_ids] or P.tolist()
    falling = sorted(chosen, reverse=True)
    return Answer(chosen.index(falling[0]), falling[0] - falling[1])


def ranking(scores: Sequence[float], seed: int, step: int) -> list[int]:
    """Indexes by score, the highest first; ties by the seeded permutation."""
    ties = stream(seed, "ties", step).permutation(len(scores))
    return sorted(range(len(scores)), key=lambda i: (-scores[i], ties[i]))


def average_precision(scores: Sequence[float], reason: Sequence[bool]) -> float:
    """The sum over thresholds of precision times the gain in recall."""
    total = before = 0.0
    for threshold in sorted(set(scores), reverse=True):
        found = [is_reason for score, is_reason in zip(scores, reason, strict=True) if score >= threshold]
        recall = sum(found) / sum(reason)
        total += (recall - before) * sum(found) / len(found)
        before = recall
    return total


def f1(scores: Sequence[float], reason: Sequence[bool], seed: int, step: int) -> float:
    """F1 of the top scores, as many as rationale tokens."""
    chosen = set(ranking(scores, seed, step)[: sum(reason)])
    hits = sum(reason[i] for i in chosen)
    precision, recall = hits / len(chosen), hits / sum(reason)
    return 2 * precision * recall / (precision + recall) if hits else 0.0
