"""Stories: five or six sentences about one hero and one friend, whom pronouns fit."""

from __future__ import annotations

import re
from random import Random

from hypothesis import given

from gradellm_engine.demo_model.training.stories import story
from gradellm_engine.demo_model.training.word_lists import GIRLS, NAMES
from support.demo_examples import seeds


@given(seeds)
def test_a_story_is_about_two_characters_whose_pronouns_fit(seed: int) -> None:
    text = story(Random(seed))
    assert text == story(Random(seed))
    assert text.startswith("Once upon a time, ")
    assert re.search(r"[{}]", text) is None  # every field is filled
    words = re.findall(r"\w+", text)
    named = [word for word in words if word in NAMES]
    hero, *others = dict.fromkeys(named)
    assert len(others) == 1
    pronouns = {word.lower() for word in words} & {"she", "her", "he", "him", "his"}
    assert pronouns <= ({"she", "her"} if hero in GIRLS else {"he", "him", "his"})


@given(seeds)
def test_a_story_has_a_sentence_for_each_of_its_parts(seed: int) -> None:
    """Five parts; the opening has one or two sentences, and the turn may have two."""
    ends = re.findall(r"[.?!]\"?(?= [A-Z\"]|$)", story(Random(seed)))
    assert 5 <= len(ends) <= 8
