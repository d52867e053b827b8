"""Two hops: the answer follows from two facts, one of which is found through the other."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

import pytest
from hypothesis import given

from gradellm_engine.demo_model.training.example import Split, in_split
from gradellm_engine.demo_model.training.two_hop.task import (
    FIRST_HOP,
    NUM_CHAINS,
    SECOND_HOP,
    TwoHopExample,
    training_turns,
    two_hop_example,
)
from support.demo_examples import seeds, splits


def draw(split: Split, seed: int) -> TwoHopExample:
    return two_hop_example(Random(seed), split)


def facts_of(content: str, verb: str) -> dict[str, str]:
    return dict(re.findall(rf"(\w+) {verb} (\w+)\.", content))


@given(splits, seeds)
def test_the_answer_follows_from_two_facts(split: Split, seed: int) -> None:
    example = draw(split, seed)
    trusts, likes = (facts_of(example.user_content, verb) for verb in (FIRST_HOP, SECOND_HOP))
    (asked,) = re.findall(r'Question: What about "(\w+)"\?$', example.user_content)
    friend = trusts[asked]
    assert example.colour == likes[friend]
    assert example.answer == f"So {asked} trusts {friend} who likes {example.colour}."
    evidence = {example.user_content[span.start : span.end] for span in example.evidence}
    assert evidence == {f"{asked} trusts {friend}.", f"{friend} likes {example.colour}."}
    # Every friend, and nobody else, likes a colour of their own: the colours tell no name.
    assert sorted(trusts.values()) == sorted(likes)
    assert len(set(likes.values())) == len(set(trusts) | set(likes)) // 2 == NUM_CHAINS


@given(splits, seeds)
def test_all_facts_have_spans_of_their_kind_and_pairs_of_the_split(split: Split, seed: int) -> None:
    example = draw(split, seed)
    texts = [example.user_content[span.start : span.end] for span in example.facts]
    assert "Facts: " + " ".join(texts) == example.user_content.split("\n")[0]
    for text, span in zip(texts, example.facts, strict=True):
        left, verb, right = text.rstrip(".").split()
        assert verb == span.kind
        assert in_split(split, left, right)
    assert Counter(span.kind for span in example.facts) == {FIRST_HOP: NUM_CHAINS, SECOND_HOP: NUM_CHAINS}


@pytest.mark.parametrize("kind", [FIRST_HOP, SECOND_HOP])
def test_the_place_of_a_fact_tells_nothing(kind: str) -> None:
    """The evidence is at each of the eight places in an eighth of the examples, within 4 standard errors."""
    places = Counter(
        next(place for place, fact in enumerate(example.facts) if fact in example.evidence and fact.kind == kind)
        for example in (draw("train", seed) for seed in range(800))
    )
    assert all(abs(places[place] - 100) < 4 * (800 / 8 * 7 / 8) ** 0.5 for place in range(8))


@given(seeds)
def test_training_turns_ask_about_three_people(seed: int) -> None:
    (content, first), *rest = training_turns(Random(seed))
    trusts, likes = (facts_of(content, verb) for verb in (FIRST_HOP, SECOND_HOP))
    turns = [(content.split("\n\n")[1], first), *rest]
    assert len(turns) == NUM_CHAINS - 1 == len({question for question, _ in turns})
    for question, answer in turns:
        asked = question.removeprefix('Question: What about "').removesuffix('"?')
        assert answer == f"So {asked} trusts {trusts[asked]} who likes {likes[trusts[asked]]}."
