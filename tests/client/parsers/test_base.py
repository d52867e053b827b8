"""Markers, and neighbouring deltas."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gradellm.parsers.base import MarkerMatch, TextParser, joined
from gradellm.parsers.deltas import Delta


@given(text=st.text("<ab>", max_size=30))
def test_markers_split_a_text(text: str) -> None:
    match, parts = MarkerMatch("<a>", "<b"), []
    for character in text:
        free, marker = match.push(character)
        parts += [free, marker]
    assert "".join(parts) + match.flush() == text
    assert sum(part in ("<a>", "<b") for part in parts) == text.count("<a>") + text.count("<b")


def test_neighbours_are_one_delta() -> None:
    deltas = [Delta("content", "a"), Delta("content", "b"), Delta("arguments", "c", 0), Delta("arguments", "d", 1)]
    assert joined(deltas) == [Delta("content", "ab"), *deltas[2:]]


def test_text_alone_is_content() -> None:
    parser = TextParser()
    assert parser.push("") == []
    assert parser.push(" <tool_call>") == [Delta("content", " <tool_call>")]
    assert parser.finish() == []
