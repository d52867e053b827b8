"""Methods against planted evidence: the measures against naive ones, intervals, and the tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gradellm_engine import AttributionSettings, Engine, GradEllm, Sampling
from gradellm_engine.demo_model.training import evidence
from gradellm_engine.demo_model.training.corpus import examples
from gradellm_engine.demo_model.training.evidence import (
    Interval,
    answered,
    compared_methods,
    evidence_mass,
    interval,
    measure,
    report,
)
from gradellm_engine.methods.random import Random
from gradellm_engine.tokenization.chat_template import Message
from gradellm_engine.tokenization.prompt_input import PromptInput


@pytest.fixture(scope="module")
def demo(model_path: Callable[[str], Path]) -> Engine:
    return Engine.load(str(model_path("demo")), dtype="float32", threads=1)


@pytest.mark.parametrize(
    ("scores", "mass"),
    [
        ([1.0, 3.0, 0.0, 0.0], 0.75),
        ([1.0, 3.0, -9.0, 4.0], 0.375),
        ([1.0, -3.0, -9.0, -4.0], 0.0),
        ([-1.0, 0.0, -2.0, 0.0], 0.5),  # no positive score: the share of all tokens
    ],
)
def test_the_mass_is_the_evidence_s_share_of_positive_scores(scores: list[float], mass: float) -> None:
    truth = np.array([False, True, True, False])
    assert evidence_mass(np.array(scores), truth) == pytest.approx(mass)
    assert evidence_mass(7 * np.array(scores), truth) == pytest.approx(mass)


def test_an_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(1).normal(2.0, 3.0, 400).tolist()
    found = interval(values)
    half = 1.96 * np.std(values) / math.sqrt(len(values))
    assert found.mean == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.1 * half)
    assert interval([0.25] * 9) == Interval(0.25, 0.25, 0.25)


@pytest.mark.parametrize(("low", "high", "has_zero"), [(-1, 1, True), (0, 1, True), (0.1, 1, False), (-1, -0.1, False)])
def test_an_interval_tells_whether_it_includes_zero(low: float, high: float, has_zero: bool) -> None:
    assert Interval((low + high) / 2, low, high).has_zero is has_zero


def test_only_right_answers_are_explained(demo: Engine) -> None:
    found = list(answered(demo, "why", 2, seed=12))
    drawn = list(examples("why", "held_out", 12, 20))
    assert [drawn.index(example) for example, _ in found] == [1, 2]
    wrong = demo.generate(evidence._input(drawn[0]), Sampling(max_new_tokens=24))
    assert "".join(step.text for step in wrong) != drawn[0].answer
    for example, ids in found:
        assert demo.model.tokenizer.decode(ids) == example.answer
        assert not set(ids) & demo.model.end_ids


def test_measures_of_a_prompt_equal_naive_ones(demo: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the user's tokens, with those that overlap the evidence's characters as positives."""
    methods = {"ours": GradEllm(), "random": Random()}
    monkeypatch.setattr(evidence, "compared_methods", lambda: methods)
    measured = measure(demo, "sentiment", 1, seed=0)
    ((example, ids),) = answered(demo, "sentiment", 1, seed=0)
    prompt = demo.tokenize(
        PromptInput(messages=tuple(Message(message.role, message.content) for message in example.messages))
    )
    begin = prompt.text.index(example.user_content)
    spans = [(begin + span.start, begin + span.end) for span in example.evidence]
    for name, switches in methods.items():
        (step,) = demo.attribute(prompt, ids, AttributionSettings(method=switches))
        assert step.attribution is not None
        ranked = []
        for token, score in zip(prompt.tokens, step.attribution.scores.tolist(), strict=True):
            if token.message == 1:
                text = prompt.text[token.start : token.end]
                first = token.end - len(text.lstrip())
                ranked.append((score, any(first < end and start < token.end for start, end in spans)))
        positive = sum(max(score, 0) for score, _ in ranked)
        mass = sum(max(score, 0) for score, is_evidence in ranked if is_evidence) / positive
        assert measured["mass"][name] == pytest.approx([mass])
        precisions = []
        for threshold in (score for score, is_evidence in ranked if is_evidence):
            chosen = [is_evidence for score, is_evidence in ranked if score >= threshold]  # ties count together
            precisions.append(sum(chosen) / len(chosen))
        assert measured["auprc"][name] == pytest.approx([sum(precisions) / len(precisions)])


def test_the_report_ranks_methods_and_names_those_that_random_equals() -> None:
    names = list(compared_methods())
    best, worst = "saliency", "lime"
    values = {name: [0.5, 0.6] for name in names} | {best: [0.8, 0.9], worst: [0.2, 0.3]}
    measured = {task: {"auprc": values, "mass": values} for task in ("sentiment", "boolq")}
    lines = report(measured, 2).splitlines()
    rows = [line for line in lines if line.startswith("| ") and line.count("|") == 6 and "---" not in line][1:]
    assert len(rows) == len(names)
    assert rows[0].startswith(f"| {best} | 0.850 | +0.300 (+0.300 to +0.300) |")
    assert rows[-1].startswith(f"| {worst} | 0.250 | -0.300 (-0.300 to -0.300) |")
    (remark,) = (line for line in lines if line.startswith("Not distinguishable"))
    assert "occlusion (AUPRC), occlusion (mass)" in remark
    assert not any(name in remark for name in (best, worst, "random ("))
