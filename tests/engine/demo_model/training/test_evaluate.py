"""Held-out accuracy: which answers count as correct, the interval, and batches of one length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from gradellm_engine.demo_model import CHECKPOINT
from gradellm_engine.demo_model.training import evaluate as evaluation
from gradellm_engine.demo_model.training.corpus import TASKS, Example, examples
from gradellm_engine.demo_model.training.evaluate import evaluate, greedy_answers, load, prompt_ids, report

COUNT = 30
Z = 1.96


@pytest.fixture(scope="module")
def demo() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    return load(CHECKPOINT)


@pytest.fixture
def right_twice_in_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of a model that is wrong on every third example, by a word more or a word less."""

    def answers(model: Any, tokenizer: Any, drawn: Sequence[Example]) -> list[str]:
        wrong = ("", drawn[0].answer + " indeed")
        return [wrong[i % 2] if i % 3 == 0 else example.answer for i, example in enumerate(drawn)]

    monkeypatch.setattr(evaluation, "load", lambda checkpoint: (None, None))
    monkeypatch.setattr(evaluation, "greedy_answers", answers)


@pytest.mark.usefixtures("right_twice_in_three")
def test_accuracies_count_exact_answers_by_task_and_construction() -> None:
    found = evaluate(CHECKPOINT, COUNT)
    for task in TASKS:
        assert found[task]["accuracy"] == pytest.approx(2 / 3, abs=1e-4)
        parts = [value for key, value in found.items() if key.startswith(f"{task}/")]
        assert len(parts) > 1
        assert sum(part["count"] for part in parts) == found[task]["count"] == COUNT
        correct = sum(round(part["accuracy"] * part["count"]) for part in parts)
        assert correct == COUNT * 2 // 3


@pytest.mark.usefixtures("right_twice_in_three")
@pytest.mark.parametrize("count", [3, 30, 300])
def test_the_interval_holds_the_shares_that_the_count_does_not_reject(count: int) -> None:
    """Wilson's: at its ends, the observed share lies 1.96 standard errors of that end away."""
    measured = evaluate(CHECKPOINT, count)["why"]
    share = 2 / 3
    assert measured["low"] < share < measured["high"]
    for end in (measured["low"], measured["high"]):
        assert abs(share - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / count), abs=2e-3)


@pytest.mark.usefixtures("right_twice_in_three")
def test_the_report_has_a_row_for_each_accuracy() -> None:
    found = evaluate(CHECKPOINT, COUNT)
    head, *rows = report(found).splitlines()
    assert [row.split()[0] for row in rows] == list(found)
    assert {len(line) for line in (head, *rows)} == {len(head)}
    assert "0.667" in next(row for row in rows if row.startswith("boolq "))


def test_answers_do_not_depend_on_their_batch(demo: tuple[PreTrainedModel, PreTrainedTokenizerFast]) -> None:
    drawn = list(examples("why", "held_out", 2, 8))
    assert greedy_answers(*demo, drawn) == [greedy_answers(*demo, [example])[0] for example in drawn]


def test_a_prompt_ends_where_the_answer_begins(demo: tuple[PreTrainedModel, PreTrainedTokenizerFast]) -> None:
    tokenizer = demo[1]
    (example,) = examples("sentiment", "held_out", 0, 1)
    text = tokenizer.decode(prompt_ids(tokenizer, example))
    system, user = (message.content for message in example.messages)
    assert text == f"<s><|system|>{system}<|end|><|user|>{user}<|end|><|assistant|>"
