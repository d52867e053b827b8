"""The corpus's annotations are correct in all tasks: spans, counterfactuals, balance, split."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter, defaultdict
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradellm_engine.demo_model import CHECKPOINT
from gradellm_engine.demo_model.training.boolq import VERBS
from gradellm_engine.demo_model.training.corpus import (
    TASKS,
    Split,
    Task,
    counterfactual,
    examples,
    training_conversation,
)
from gradellm_engine.demo_model.training.sentiment import CONSTRUCTIONS, POLARITY
from support.demo_examples import boolq_by_rule, draw, seeds, sentiment_by_rule, splits


@given(st.sampled_from(TASKS), splits, seeds)
def test_spans_are_ordered_and_lie_in_the_users_text(task: Task, split: Split, seed: int) -> None:
    example = draw(task, split, seed)
    assert example.messages[-1].role == "user"
    assert example.evidence
    previous = 0
    for span in example.evidence:
        assert previous <= span.start < span.end <= len(example.user_content)
        words = example.user_content[span.start : span.end]
        assert words == words.strip()
        assert re.search(r"\w$", example.user_content[: span.start]) is None  # a span starts a word
        assert re.match(r"\w", example.user_content[span.end :]) is None  # and ends one
        previous = span.end


@given(st.sampled_from(["sentiment", "boolq"]), splits, seeds)
def test_counterfactual_turns_the_label_round_and_back(task: Task, split: Split, seed: int) -> None:
    example = draw(task, split, seed)
    flipped = counterfactual(example)
    rule = sentiment_by_rule if task == "sentiment" else boolq_by_rule
    assert flipped.answer != example.answer
    assert rule(flipped) == flipped.answer
    assert counterfactual(flipped) == example


def test_why_has_no_counterfactual() -> None:
    with pytest.raises(ValueError, match="no counterfactual"):
        counterfactual(draw("why", "train", 0))


@given(st.sampled_from(TASKS), splits, seeds, st.integers(min_value=1, max_value=5))
def test_examples_depend_on_their_arguments_alone(task: Task, split: Split, seed: int, count: int) -> None:
    assert list(examples(task, split, seed, count)) == list(examples(task, split, seed, 5))[:count]


def test_held_out_texts_are_unseen() -> None:
    for task in TASKS:
        train = {example.user_content for example in examples(task, "train", 0, 3000)}
        assert not train & {example.user_content for example in examples(task, "held_out", 0, 1000)}


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_labels_are_balanced_in_every_construction(split: Split) -> None:
    counts: Counter[tuple[str, str]] = Counter()
    for task in ("sentiment", "boolq"):
        counts.update((example.construction, example.answer) for example in examples(task, split, 1, 4000))
    for construction in {key[0] for key in counts}:
        labels = [count for key, count in counts.items() if key[0] == construction]
        assert len(labels) == 2
        assert abs(labels[0] - labels[1]) < 4 * sum(labels) ** 0.5
    assert {key[0] for key in counts} >= set(CONSTRUCTIONS)


@pytest.mark.parametrize("task", ["sentiment", "boolq"])
def test_no_word_but_polarity_words_tells_the_label(task: Task) -> None:
    """Within 4.5 standard errors of a half, for every sufficiently frequent word."""
    polarity = {token for word in POLARITY for token in word.split()}
    polarity |= {token for verbs in VERBS for verb in verbs for token in verb.split()}
    seen: dict[str, list[bool]] = defaultdict(list)
    for example in examples(task, "train", 2, 6000):
        for word in set(re.findall(r"[\w']+", example.user_content.lower())) - polarity:
            seen[word].append(example.answer in ("Positive", "true"))
    often = {word: labels for word, labels in seen.items() if len(labels) >= 100}
    assert len(often) > 100
    for word, labels in often.items():
        deviation = abs(sum(labels) / len(labels) - 0.5)
        assert deviation < 4.5 * 0.5 / len(labels) ** 0.5, word


@given(seeds, st.booleans())
def test_training_conversations_hold_one_or_two_reviews(seed: int, easy: bool) -> None:
    turns = training_conversation("sentiment", Random(seed), easy=easy)
    roles = " ".join(turn.role for turn in turns)
    assert roles in {"system" + " user assistant" * reviews for reviews in ((1,) if easy else (1, 2))}


def test_corpus_needs_no_torch() -> None:
    """The engine's own package imports torch, so it is stood in for by an empty one on the same path."""
    path = [str(CHECKPOINT.parents[1])]
    code = (
        "import sys, types; package = sys.modules['gradellm_engine'] = types.ModuleType('gradellm_engine');"
        f"package.__path__ = {path!r}; import gradellm_engine.demo_model.training.corpus;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
