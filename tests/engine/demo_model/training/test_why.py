"""Why: the answer restates the marked cause; retellings repeat causes word for word."""

from __future__ import annotations

import re
from random import Random

from hypothesis import given, settings

from gradellm_engine.demo_model.training.example import Split
from gradellm_engine.demo_model.training.why import retelling
from gradellm_engine.demo_model.training.word_lists import possessive, pronoun
from support.demo_examples import draw, seeds, splits, words_of


@given(splits, seeds)
def test_why_answer_restates_the_marked_cause(split: Split, seed: int) -> None:
    example = draw("why", split, seed)
    match = re.search(r" Why did (\w+) [^?]+\?$", example.user_content)
    assert match
    (cause,) = words_of(example, "cause")
    assert example.answer == f"Because {pronoun(match[1])} {cause}."
    assert 5 <= len(example.answer.split()) <= 12
    assert example.user_content.count(match[1]) >= 2
    assert (f" {possessive(match[1])} " in example.answer) or " his " not in example.answer


@settings(max_examples=20)
@given(seeds)
def test_retellings_repeat_half_of_the_sentences(seed: int) -> None:
    sentences, again = (re.findall(r"\w[^.]*\.", text) for text in retelling(Random(seed)).split("\n\nAgain: "))
    assert 2 <= len(sentences) <= 5
    assert len({sentence.split()[0] for sentence in sentences}) == len(
        sentences
    )  # so that a name tells which cause to repeat
    assert len(set(again)) == len(again) == (len(sentences) + 1) // 2
    assert set(again) <= set(sentences)
