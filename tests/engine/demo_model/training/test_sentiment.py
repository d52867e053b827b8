"""Sentiment: the label follows from the deciding polarity words, and from no other word."""

from __future__ import annotations

import re

from hypothesis import given

from gradellm_engine.demo_model.training.corpus import examples
from gradellm_engine.demo_model.training.example import Split, in_split
from gradellm_engine.demo_model.training.sentiment import POLARITY
from support.demo_examples import draw, seeds, sentiment_by_rule, splits, words_of


@given(splits, seeds)
def test_sentiment_label_follows_from_its_evidence(split: Split, seed: int) -> None:
    example = draw("sentiment", split, seed)
    negators, polarities = words_of(example, "negator"), words_of(example, "polarity")
    assert len(negators) in (0, len(polarities))
    assert (example.construction == "plain") <= (not negators)
    assert (example.construction == "negation") <= bool(negators)
    assert example.answer == sentiment_by_rule(example)
    assert 5 <= len(example.user_content.split()) <= 46


@given(splits, seeds)
def test_opinions_belong_to_the_split_wherever_they_stand(split: Split, seed: int) -> None:
    adjectives = "|".join(word for word in POLARITY if " " not in word)
    nouns = r"\w+(?: book| house| trip| ride| guide| chapter| display)?"
    clause = re.compile(rf"\bthe ({nouns}) was (?:really |quite |not |never |hardly )?({adjectives})\b", re.IGNORECASE)
    off_topic = ("weather", "traffic", "bus ride", "news")  # these count with their article, as "my job" does
    for noun, word in clause.findall(draw("sentiment", split, seed).user_content):
        assert in_split(split, f"the {noun}" if noun in off_topic else noun, word)


def test_signs_outside_the_evidence_tell_nothing() -> None:
    """The first polarity word that does not decide agrees with the label half of the time."""
    pattern = re.compile("|".join(rf"\b{word}\b" for word in sorted(POLARITY, key=len, reverse=True)), re.IGNORECASE)
    agreeing = []
    for example in examples("sentiment", "train", 3, 4000):
        deciding = {span.start for span in example.evidence}
        asides = [match for match in pattern.finditer(example.user_content) if match.start() not in deciding]
        if asides:
            agreeing.append(POLARITY[asides[0][0].lower()] == (example.answer == "Positive"))
    assert len(agreeing) > 1500
    assert abs(sum(agreeing) / len(agreeing) - 0.5) < 0.05
