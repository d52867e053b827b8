"""A name or a thing stands in one list only, so that its pronoun is certain."""

from __future__ import annotations

from collections import Counter

from gradellm_engine.demo_model.training.word_lists import (
    COLOURS,
    NAMES,
    OBJECTS,
    TOWNS,
    possessive,
    pronoun,
    words,
)


def test_no_word_is_in_two_lists() -> None:
    """A name that is also a town, or both a girl's and a boy's, would make an answer ambiguous."""
    assert {word: count for word, count in Counter(NAMES + TOWNS + COLOURS + OBJECTS).items() if count > 1} == {}


def test_pronouns_agree_with_possessives() -> None:
    pairs = {(pronoun(name), possessive(name)) for name in NAMES}
    assert pairs == {("she", "her"), ("he", "his")}


def test_words_are_split_at_any_white_space() -> None:
    assert words(" Mia  Tom\nLeo ") == ("Mia", "Tom", "Leo")
