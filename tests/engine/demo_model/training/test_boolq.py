"""Boolq: the answer follows from the fact in question, and from nothing else."""

from __future__ import annotations

import re
from collections import defaultdict
from random import Random

import pytest
from hypothesis import given, settings

from gradellm_engine.demo_model.training.boolq import VERBS, verdicts
from gradellm_engine.demo_model.training.corpus import counterfactual, examples, training_conversation
from gradellm_engine.demo_model.training.example import Split, in_split
from support.demo_examples import AFFIRMATIONS, ANY_VERB, boolq_by_rule, draw, seeds, splits, words_of

_ANY_DENIAL = "|".join(denial for _, denial in VERBS)


@given(splits, seeds)
def test_boolq_answer_follows_from_its_evidence(split: Split, seed: int) -> None:
    example = draw("boolq", split, seed)
    assert words_of(example, "subject") == words_of(example, "asked_subject")
    assert example.answer == boolq_by_rule(example)
    passage, question = example.user_content.split("\n\n")
    assert 2 <= passage.count(".") <= 4
    # Exactly one sentence is about the question's subject: the marked one.
    (subject,), (verb,), (value,) = (words_of(example, kind) for kind in ("subject", "verb", "value"))
    (about,) = [fact for fact in re.split(r"[.:]", passage) if re.search(rf"\b{subject}\b", fact)]
    assert about.endswith(f"{subject} {verb} {value}")
    assert words_of(example, "asked_value") == [value]
    assert question.startswith("Question: ")
    # The other sentences are consistent with both answers.
    verbs = re.findall(rf" ({ANY_VERB}) \w+\.", passage)
    assert {verb in AFFIRMATIONS for verb in verbs} == {True, False}


@given(splits, seeds)
def test_stated_and_asked_pairs_belong_to_the_split(split: Split, seed: int) -> None:
    for example in (draw("boolq", split, seed), counterfactual(draw("boolq", split, seed))):
        for value in words_of(example, "value") + words_of(example, "asked_value"):
            assert in_split(split, words_of(example, "subject")[0], value)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_boolq_answer_does_not_follow_from_denials_or_position(split: Split) -> None:
    """By the number of facts, of denials, and the position of the question's fact: a half, within 4 standard errors.

    Of three facts, the number of denials would tell two answers in three, were it not one as often as two.
    """
    answers: dict[tuple[str, int], list[bool]] = defaultdict(list)
    for example in examples("boolq", split, 4, 4000):
        sentences = re.findall(r"[^.]+\.", example.user_content.split("\n\n")[0])
        denials = sum(re.search(rf" ({_ANY_DENIAL}) ", fact) is not None for fact in sentences)
        (subject,) = (span for span in example.evidence if span.kind == "subject")
        sentence_index = example.user_content[: subject.start].count(".")
        is_true = example.answer == "true"
        answers[f"place among {len(sentences)}", sentence_index].append(is_true)
        answers["facts", len(sentences)].append(is_true)
        if len(sentences) % 2 == 0:
            assert denials == len(sentences) / 2
            answers["denials", denials].append(is_true)
        else:
            assert denials in (1, 2)
    for key, outcomes in answers.items():
        assert abs(sum(outcomes) / len(outcomes) - 0.5) < 4 * 0.5 / len(outcomes) ** 0.5, key


@given(seeds)
def test_training_conversations_leave_half_of_a_passage_unasked(seed: int) -> None:
    """If every fact were asked about, the last answers would follow from the number of denials."""
    turns = training_conversation("boolq", Random(seed))
    facts = turns[1].content.split("\n\n")[0].count(".")
    questions = [re.sub(r".*\n\n", "", turn.content, flags=re.DOTALL) for turn in turns if turn.role == "user"]
    assert len(questions) == len(set(questions)) == (facts + 1) // 2
    assert [turn.content in ("true", "false") for turn in turns if turn.role == "assistant"] == [True] * len(questions)


@settings(max_examples=20)
@given(seeds)
def test_verdicts_are_those_of_the_passage(seed: int) -> None:
    passage, listed = verdicts(Random(seed)).split("\n\nVerdicts: ")
    stated = {
        match["value"]: "true" if match["verb"] in AFFIRMATIONS else "false"
        for match in re.finditer(rf" (?P<verb>{ANY_VERB}) (?P<value>\w+)\.", passage)
    }
    words = listed.split()
    questions = dict(zip(words[::2], words[1::2], strict=True))
    assert 2 <= len(questions) <= 4
    assert questions.items() <= stated.items()
