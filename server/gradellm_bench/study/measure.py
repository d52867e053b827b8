"""One row of the study: the scores of all methods for one token, and what is measured of them.

Token 0 is left out for all methods: on it heads rest attention that they have no use for, and some methods do not score
it. U, over which everything is measured, is the rest of the user's own text.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradellm.pictures.chips import Canvas, Chip
from gradellm.pictures.picture import Picture, paint
from gradellm_bench.study.examples import StudyExample
from gradellm_bench.study.results import RANDOM
from gradellm_bench.study.retrieval import Span, right_answer
from gradellm_engine import (
    AttributionSettings,
    Engine,
    EvaluatedMethod,
    EvaluationItem,
    EvaluationSettings,
    Metric,
    PromptInput,
    Role,
    Sampling,
)
from gradellm_engine.faithfulness.metrics.rationale_agreement import average_precision
from gradellm_engine.params import Switches
from gradellm_engine.sampling_params import MAX_ALTERNATIVES
from gradellm_engine.tokenization.prompt import Prompt

Scores = NDArray[np.float64]
ScoreFn = Callable[[list[int], int], Mapping[str, Scores]]
"""From a prefix and the token after it to scores of the prefix, by name."""
RANDOM_SEED = 7
MAX_ANSWER_TOKENS = 16


@dataclass(frozen=True)
class SoftGrid:
    """How pi-Soft metrics are computed: at these pi, with so many masks each."""

    pis: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    samples: int = 1


def measure_row(
    engine: Engine,
    example: StudyExample,
    methods: Mapping[str, Switches],
    grid: SoftGrid | None,
    more_scores: ScoreFn | None = None,
) -> dict[str, Any] | None:
    """What is measured of each method, and of what `more_scores` adds; None for a row that does not count.

    A row does not count if the model's answer is not the expected one, no label is likely, or U has less than two
    tokens.
    """
    prompt = engine.tokenize(example.prompt)
    completion = _completion(engine, example, prompt)
    U = [i for i, token in enumerate(prompt.tokens) if token.role is Role.USER and not token.special and i > 0]
    if not completion or len(U) < 2:
        return None
    results: dict[str, dict[str, float]] = {}
    scores: dict[str, Scores] = {RANDOM: np.random.default_rng(RANDOM_SEED).random(len(prompt.tokens))}
    for name, switches in methods.items():
        began = time.perf_counter()
        scores[name] = _scores(engine, example.prompt, completion, switches)
        results[name] = {"seconds": time.perf_counter() - began}
    if more_scores is not None:
        found = more_scores([*prompt.ids, *completion[:-1]], completion[-1])
        scores |= {name: row[: len(prompt.tokens)] for name, row in found.items()}
    for name, row in scores.items():
        results.setdefault(name, {}).update(_agreement(example, prompt, U, row))
    if grid is not None:
        for item in _soft_metrics(engine, example.prompt, completion, U, scores, grid):
            results[item.name][item.metric.value] = item.value
    lengths = {"prompt": len(prompt.tokens), "U": len(U), "step": len(completion) - 1}
    return {"id": example.id, "target": completion[-1], "tokens": lengths, "methods": results}


def _completion(engine: Engine, example: StudyExample, prompt: Prompt) -> list[int]:
    """A completion whose last token is explained; empty where there is none."""
    if example.target:
        text = example.prompt.prompt or ""
        longer = engine.tokenize(PromptInput(prompt=text + example.target)).ids
        return longer[len(prompt.ids) :][:1] if longer[: len(prompt.ids)] == prompt.ids else []
    if example.answer:
        return _up_to_answer(engine, example)
    sampling = Sampling(max_new_tokens=1, num_alternatives=MAX_ALTERNATIVES)
    (step,) = engine.generate(example.prompt, sampling)
    for alternative in step.alternatives:
        said = alternative.text.strip()
        if not example.labels or (said and any(label.startswith(said) for label in example.labels)):
            return [alternative.id]
    return []


def _up_to_answer(engine: Engine, example: StudyExample) -> list[int]:
    """What the model says, up to the first token of the answer; empty where it says something else.

    The answer must be the first of the candidates that it names.
    """
    steps = list(engine.generate(example.prompt, Sampling(max_new_tokens=MAX_ANSWER_TOKENS)))
    text = "".join(step.text for step in steps)
    span = right_answer(text, example.answer, example.candidates)
    return [] if span is None else [step.id for step in steps if step.start <= span[0]]


def _scores(engine: Engine, prompt: PromptInput, completion: list[int], switches: Switches) -> Scores:
    *_, step = engine.attribute(prompt, completion, AttributionSettings(switches))
    if step.attribution is None:
        raise RuntimeError("a completed attribution has no scores")
    scores: Scores = step.attribution.scores.double().cpu().numpy()
    return scores


def _soft_metrics(
    engine: Engine,
    prompt: PromptInput,
    completion: list[int],
    U: Sequence[int],
    scores: Mapping[str, Scores],
    grid: SoftGrid,
) -> list[EvaluationItem]:
    step = len(completion) - 1
    settings = EvaluationSettings(
        tuple(EvaluatedMethod(name, rows={step: tuple(row.tolist())}) for name, row in scores.items()),
        (Metric.PI_SOFT_NS, Metric.PI_SOFT_NC),
        pis=grid.pis,
        samples=grid.samples,
        positions=tuple(U),
        offset=step,
    )
    return [event for event in engine.evaluate(prompt, settings, completion) if isinstance(event, EvaluationItem)]


def _agreement(example: StudyExample, prompt: Prompt, U: Sequence[int], row: Scores) -> dict[str, float]:
    """How far scores agree with the evidence, and how far they are spread."""
    of_U = row[list(U)]
    positive = np.clip(of_U, 0, None)
    total = positive.sum()
    shares = positive / total if total else np.full(len(U), 1 / len(U))
    entropy = -(shares * np.log(np.clip(shares, 1e-300, None))).sum() / np.log(len(U))
    found = {"entropy": float(entropy), "largest": float(shares.max())}
    if not example.evidence:
        return found
    in_evidence = _overlaps(prompt, U, example.evidence)
    if 0 < in_evidence.sum() < len(U):
        found["auprc"] = average_precision(of_U, in_evidence)
        found["mass"] = float(shares[in_evidence].sum())
    if example.sentences:
        sentence = next(s for s in example.sentences if s[0] <= example.evidence[0][0] < s[1])
        drawn = _picture(prompt, U, row)
        best = drawn.chips[int(np.argmax(drawn.values))]
        found["source_first"] = float(_overlap(best, example.evidence))
        shares = [share for chip, share in zip(drawn.chips, drawn.shares, strict=True) if _overlap(chip, (sentence,))]
        found["drawn_mass"] = math.fsum(shares)
    return found


def _picture(prompt: Prompt, U: Sequence[int], row: Scores) -> Picture:
    """What a picture of the scores shows of the words of U; places are those of the user's text."""
    offset = _offset(prompt)
    chips = []
    for _, group in groupby(U, lambda i: prompt.words[i]):
        word = list(group)
        start, end = prompt.tokens[word[0]].start - offset, prompt.tokens[word[-1]].end - offset
        chips.append(Chip("", start, end, tuple(word), len(word), None, "user", ""))
    return paint(Canvas(tuple(chips), frozenset(), 0, None), dict(enumerate(row.tolist())))


def _overlap(chip: Chip, spans: Sequence[Span]) -> bool:
    return any(chip.start < end and chip.end > start for start, end in spans)


def _overlaps(prompt: Prompt, U: Sequence[int], spans: Sequence[Span]) -> NDArray[np.bool_]:
    """Which tokens of U overlap one of the spans of the user's text. [U]"""
    offset = _offset(prompt)
    tokens = [prompt.tokens[i] for i in U]
    return np.array(
        [any(token.start - offset < end and token.end - offset > start for start, end in spans) for token in tokens]
    )


def _offset(prompt: Prompt) -> int:
    """Where the user's text begins in the prompt's."""
    return next((token.start for token in prompt.tokens if token.role is Role.USER and not token.special), 0)
