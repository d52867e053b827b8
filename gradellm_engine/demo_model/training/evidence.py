"""Compares methods by planted evidence: `python -m gradellm_engine.demo_model.training.evidence [--count 40]`.

Every method explains held-out prompts that the demo model answers correctly. The corpus marks the words that decide the
answer. Two measures, over the tokens of the user's message:

- AUPRC of ranking tokens by score, with evidence tokens as positives (average precision; ties count together);
- mass: the evidence tokens' share of all positive scores.

The scores of an answer of several tokens are the mean of its attribution rows. Intervals are percentile bootstraps over
prompts, 10,000 resamples at 95 %; differences from random scores are paired, prompt by prompt.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gradellm_engine.demo_model import CHECKPOINT
from gradellm_engine.demo_model.training.corpus import TASKS, Example, examples
from gradellm_engine.engine import Engine
from gradellm_engine.faithfulness.metrics.rationale_agreement import average_precision
from gradellm_engine.methods.random import Random
from gradellm_engine.methods.registry import METHODS
from gradellm_engine.params import PRESETS, AttributionSettings, GradEllm, Switches
from gradellm_engine.sampling_params import Sampling
from gradellm_engine.tokenization.chat_template import Message
from gradellm_engine.tokenization.prompt_input import PromptInput, Segment

RESAMPLES = 10_000
BASELINE = "random"
MAX_ANSWER_TOKENS = 24

Scores = dict[str, list[float]]  # by method, one value a prompt


@dataclass(frozen=True)
class Interval:
    """A mean over prompts, with its bootstrap interval at 95 %."""

    mean: float
    low: float
    high: float

    @property
    def has_zero(self) -> bool:
        """Whether the interval includes zero."""
        return self.low <= 0 <= self.high

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Compare methods by planted evidence, on the demo model.")
    parser.add_argument("--model", type=Path, default=CHECKPOINT, help="checkpoint folder (default: what ships)")
    parser.add_argument(
        "--count", type=int, default=40, help="prompts a task, of those that the model answers correctly"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the held-out examples")
    parser.add_argument("--json", type=Path, help="file for the values of every prompt")
    parser.add_argument("--markdown", type=Path, help="file for the tables (default: standard output)")
    options = parser.parse_args()
    engine = Engine.load(str(options.model), dtype="float32", threads=1)  # the model is too small for more
    measured: dict[str, dict[str, Scores]] = {
        task: measure(engine, task, options.count, options.seed) for task in TASKS
    }
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1) + "\n")
    text = report(measured, options.count)
    if options.markdown:
        options.markdown.write_text(text)
    else:
        print(text)


def compared_methods() -> dict[str, Switches]:
    """The methods by name: every preset of Grad-ELLM, and every other method with its default settings."""
    presets = {f"grad_ellm, {name}": GradEllm.preset(name) for name in PRESETS}
    return {**presets, **{name: method.switches() for name, method in METHODS.items() if name != GradEllm.name}}


def measure(engine: Engine, task: str, count: int, seed: int) -> dict[str, Scores]:
    """AUPRC and mass of each method on prompts of a task: {"auprc": .., "mass": ..}."""
    methods = compared_methods()
    auprc: Scores = {name: [] for name in methods}
    mass: Scores = {name: [] for name in methods}
    began = time.monotonic()
    for index, (example, ids) in enumerate(answered(engine, task, count, seed)):
        prompt = _input(example)
        tokens = engine.tokenize(prompt).tokens
        user_tokens = [i for i, token in enumerate(tokens) if token.message == len(example.messages) - 1]
        truth = np.array([tokens[i].segment is not None for i in user_tokens])
        for name, switches in methods.items():
            method = Random(seed=index) if isinstance(switches, Random) else switches
            rows = [step.attribution for step in engine.attribute(prompt, ids, AttributionSettings(method=method))]
            scores = torch.stack([row.scores for row in rows if row is not None]).mean(0).double().numpy()[user_tokens]
            auprc[name].append(average_precision(scores, truth))
            mass[name].append(evidence_mass(scores, truth))
        print(f"{task}: {index + 1} of {count} prompts, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return {"auprc": auprc, "mass": mass}


def answered(engine: Engine, task: str, count: int, seed: int) -> Iterator[tuple[Example, list[int]]]:
    """Held-out examples that the model answers correctly, with the answer's tokens without the end of turn."""
    found = 0
    for example in examples(task, "held_out", seed, 10 * count):  # type: ignore[arg-type]
        steps = list(engine.generate(_input(example), Sampling(max_new_tokens=MAX_ANSWER_TOKENS)))
        if "".join(step.text for step in steps) == example.answer:
            yield example, [step.id for step in steps if not step.special]
            found += 1
        if found == count:
            return


def _input(example: Example) -> PromptInput:
    last = len(example.messages) - 1
    return PromptInput(
        messages=tuple(Message(message.role, message.content) for message in example.messages),
        segments=tuple(
            Segment(f"evidence {index}", span.start, span.end, last) for index, span in enumerate(example.evidence)
        ),
    )


def evidence_mass(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """The evidence tokens' share of positive scores, or of all tokens where no score is positive. [U], [U]"""
    positive = np.clip(scores, 0, None)
    total = positive.sum()
    return float(positive[truth].sum() / total) if total > 0 else float(truth.mean())


def interval(values: Sequence[float]) -> Interval:
    """The mean of one value a prompt, with its interval."""
    array = np.asarray(values)
    draws = np.random.default_rng(0).integers(0, len(array), (RESAMPLES, len(array)))
    low, high = np.percentile(array[draws].mean(1), [2.5, 97.5])
    return Interval(float(array.mean()), float(low), float(high))


def report(measured: Mapping[str, Mapping[str, Scores]], count: int) -> str:
    """Markdown tables: all tasks together, with paired differences from random scores, and AUPRC by task."""
    tasks = list(measured)
    together = {
        measure: {
            name: [value for task in tasks for value in measured[task][measure][name]] for name in compared_methods()
        }
        for measure in ("auprc", "mass")
    }
    ranked = sorted(compared_methods(), key=lambda name: -float(np.mean(together["auprc"][name])))
    lines = [
        "# Methods against planted evidence",
        "",
        f"{count} held-out prompts a task ({', '.join(tasks)}) that the demo model answers right. Made by",
        "`python -m gradellm_engine.demo_model.training.evidence`, which says what the measures are.",
        "",
        "| method | AUPRC | less random's, paired | mass | less random's, paired |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    unsure = []
    for name in ranked:
        cells = [name]
        for measure in ("auprc", "mass"):
            values, random = together[measure][name], together[measure][BASELINE]
            difference = interval([score - random_score for score, random_score in zip(values, random, strict=True)])
            cells += [f"{np.mean(values):.3f}", "" if name == BASELINE else str(difference)]
            if name != BASELINE and difference.has_zero:
                unsure.append(f"{name} ({'AUPRC' if measure == 'auprc' else 'mass'})")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", _remark(unsure), "", "AUPRC by task:", "", f"| method | {' | '.join(tasks)} |"]
    lines.append(f"| --- |{' ---: |' * len(tasks)}")
    for name in ranked:
        means = (f"{np.mean(measured[task]['auprc'][name]):.3f}" for task in tasks)
        lines.append(f"| {name} | {' | '.join(means)} |")
    return "\n".join(lines) + "\n"


def _remark(unsure: Sequence[str]) -> str:
    if not unsure:
        return "No interval of a difference includes zero."
    return f"Not distinguishable from random, because the interval includes zero: {', '.join(unsure)}."


if __name__ == "__main__":
    main()
