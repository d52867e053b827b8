"""JSON of callers: what is refused, where it is, and how soon."""

from __future__ import annotations

import time

import pytest

from gradellm_engine import InvalidRequestError
from gradellm_engine.utils.bounded_json import MAX_LEVELS, pointer, read_json


def refusal(text: str, max_characters: int | None = None) -> str:
    began = time.monotonic()
    with pytest.raises(InvalidRequestError) as caught:
        read_json("field", text, max_characters=max_characters)
    assert caught.value.field == "field"
    assert time.monotonic() - began < 2
    return caught.value.description


def nested(levels: int, inner: str = "") -> str:
    return "[" * levels + inner + "]" * levels


def test_the_values_are_those_of_the_text() -> None:
    value = {"a": [1, 2.5, {"b": None, "c": True}], "": [[], {}], "é": "\U0001f600", "n": 12345678901234567890}
    text = '{"a": [1, 2.5, {"b": null, "c": true}], "": [[], {}], "é": "\\ud83d\\ude00", "n": 12345678901234567890}'
    assert read_json("field", text) == value
    assert read_json("field", nested(MAX_LEVELS, "1"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not JSON: Expecting value: line 1 column 1"),
        ("[1,]", "is not JSON: "),
        ("NaN", "at #: NaN is not a JSON number"),
        ('{"a": [0, NaN]}', "at #/a/1: NaN is not a JSON number"),
        ('{"a": {"b": -Infinity}}', "at #/a/b: -Infinity is not a JSON number"),
        ("[[], {}, [-1e999]]", "at #/2/0: -1e999 is not a JSON number"),
        (f"[{'9' * 5000}]", "a number has more than 4,300 digits, which is the limit: shorten it"),
        ('[[1], ["\\ud800"]]', "at #/1/0: a lone surrogate"),
        ('{"a": {"\\udfff": 1}}', "at #/a/?: a lone surrogate"),
        (nested(MAX_LEVELS + 1), "at #/0/0/0/0/0/0/...: nested deeper than 64 levels, which is the limit: flatten it"),
        ('{"a":' * 65 + "1" + "}" * 65, "at #/a/a/a/a/a/a/...: nested deeper than 64 levels"),
        (nested(1_000_000), "nested deeper than 64 levels"),
        ("[" * 1_000_000, "nested deeper than 64 levels"),
        (f"[{'[],' * 500_000}NaN]", "at #/500000: NaN"),
    ],
)
def test_refusals_name_the_place_and_the_limit(text: str, words: str) -> None:
    assert words in refusal(text)


def test_long_texts_are_refused_unread() -> None:
    assert refusal("[" * 10**7, max_characters=9) == "10,000,000 characters of JSON; the limit is 9: shorten it"
    assert read_json("field", "[1]", max_characters=3) == [1]


def test_places_are_json_pointers() -> None:
    assert pointer([]) == "#"
    assert pointer(["a/b~", 0, "x" * 100]) == "#/a~1b~0/0/" + "x" * 40
