"""Members and the end of an object, a character at a time."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradellm.parsers.object_scanner import Member, ObjectScanner

VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def scan(text: str) -> tuple[ObjectScanner, list[Member], str]:
    """The scanner, the members, and the characters that belong to values."""
    scanner, members, inside = ObjectScanner(), [], []
    for character in text:
        if scanner.push(character):
            inside.append(character)
        if scanner.completed is not None:
            members.append(scanner.completed)
        if scanner.is_done or scanner.is_failed:
            break
    return scanner, members, "".join(inside)


@given(value=st.dictionaries(st.text(max_size=3), VALUES, max_size=4), indent=st.sampled_from([None, 1]))
def test_members_are_those_of_json(value: dict[str, Any], indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    scanner, members, inside = scan(f" {text}, more")
    assert scanner.is_done
    assert not scanner.is_failed
    assert {member.key: json.loads(text[member.start : member.end]) for member in members} == value
    assert inside == "".join(text[member.start : member.end] for member in members)


@pytest.mark.parametrize(
    "text", ["[", "1", '{"a" 1}', "{a", '{"a": }', '{"a": [}', '{"a": 1 2', '{"a": 1,}', '{"\\x": 1}']
)
def test_other_text_fails(text: str) -> None:
    assert scan(text)[0].is_failed


def test_an_object_may_go_on() -> None:
    scanner, _, _ = scan('{"a": "}')
    assert not scanner.is_done
    assert not scanner.is_failed
