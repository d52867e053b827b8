"""Sentences of answers: in prose, lists and several scripts."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradellm.explanation.sentences import sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  \n", []),
        ("Soup is five coins", ["Soup is five coins"]),
        ("It is red. It costs 3.50 coins! Is it? Yes.", ["It is red.", "It costs 3.50 coins!", "Is it?", "Yes."]),
        ("Dr. Smith met J. Doe, e.g. on Monday. They left.", ["Dr. Smith met J. Doe, e.g. on Monday.", "They left."]),
        ("It was I. You know.", ["It was I.", "You know."]),
        ("At approx. five it opens. Come", ["At approx. five it opens.", "Come"]),
        ('He said "no." She left.', ['He said "no."', "She left."]),
        ("**Red.** Blue... Green?! Yes", ["**Red.**", "Blue...", "Green?!", "Yes"]),
        ("1. Bread\n2. Soup is hot. Eat.\n\n- a. Tea\n", ["1. Bread", "2. Soup is hot.", "Eat.", "- a. Tea"]),
        ("One line\nanother line\r\nlast", ["One line", "another line", "last"]),
        ("She left ... and came back. So", ["She left ... and came back.", "So"]),
        ("汤是五元。面包「两元。」谢谢！", ["汤是五元。", "面包「两元。」", "谢谢！"]),
        ("यह लाल है। वह नीला है।", ["यह लाल है।", "वह नीला है।"]),
        ("--- \n*** Good.", ["*** Good."]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert [sentence.text for sentence in sentences(text)] == expected


@given(st.text(alphabet=st.sampled_from('aB1 .!?。\n")*-e.g'), max_size=60) | st.text(max_size=60))
def test_sentences_hold_all_letters_in_order(text: str) -> None:
    found = sentences(text)
    assert all(text[s.start : s.end] == s.text == s.text.strip() != "" for s in found)
    assert all(a.end <= b.start for a, b in pairwise(found))
    letters = [char for s in found for char in s.text if char.isalnum()]
    assert letters == [char for char in text if char.isalnum()]


@pytest.mark.parametrize("part", [".", "a.", ". ", "。", ")", ".)", "-", "- 1. ", "\n", '."'])
def test_long_texts_take_linear_time(part: str) -> None:
    text = part * (200_000 // len(part))
    assert sum(len(s.text) for s in sentences(text)) <= len(text)
