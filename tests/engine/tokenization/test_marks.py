"""Marks in texts, before and after a template."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gradellm_engine.tokenization.marks import Marks, unused_prefix


@given(text=st.text(), offsets=st.lists(st.integers(0, 30)))
def test_marks_are_found_where_they_were_put(text: str, offsets: list[int]) -> None:
    marks: Marks[int] = Marks(unused_prefix([text]))
    places = sorted(min(offset, len(text)) for offset in offsets)
    marked = marks.put(text, [(offset, offset) for offset in places])
    assert marks.take(marked) == (text, [(offset, offset) for offset in places])


def test_a_changed_mark_is_noticed() -> None:
    marks: Marks[str] = Marks("~1")
    marked = marks.put("ab", [(1, "x")])
    assert marks.take(marked.replace("~1", "~1x")) is None
    assert marks.take(marked + "~199999999~") is None


def test_a_prefix_is_in_no_text() -> None:
    assert unused_prefix(["~"]) not in "~"
