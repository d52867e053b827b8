"""Checks of keywords: what they accept, and that a refusal names the keyword and shows the value in short."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import TypedDict

import numpy as np
import pytest

from gradellm.errors import InvalidRequestError
from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire import validation


class Keywords(TypedDict, total=False):
    """The keywords of a call."""

    temperature: float
    top_k: int


def refusal(check: Callable[[], object]) -> str:
    """The message of a refused value, whose violation has the keyword and the problem."""
    with pytest.raises(InvalidRequestError) as refused:
        check()
    (violation,) = refused.value.violations
    assert str(refused.value) == f"{violation.field}: {violation.description}"
    return str(refused.value)


def test_unknown_keywords_are_refused_with_the_closest() -> None:
    validation.refuse_unknown("call", {"top_k": 1}, Keywords)
    with pytest.raises(TypeError, match=r"^call\(\) has no keyword temprature; did you mean temperature\?$"):
        validation.refuse_unknown("call", {"temprature": 1}, Keywords)
    with pytest.raises(TypeError, match=r"^call\(\) has no keyword seed; it has temperature, top_k$"):
        validation.refuse_unknown("call", {"seed": 1}, Keywords)


def test_exactly_one_of_several_keywords() -> None:
    validation.exactly_one({"a": None, "b": "", "c": None})
    wanted = "exactly one of a, b and c must be given"
    assert refusal(lambda: validation.exactly_one({"a": None, "b": None, "c": None})) == f"a: {wanted}; given: none"
    assert refusal(lambda: validation.exactly_one({"a": 0, "b": None, "c": []})) == f"c: {wanted}; given: a, c"


def test_an_absent_keyword_is_not_checked() -> None:
    for keywords in ({}, {"top_k": None}):
        assert validation.optional(validation.int32, "top_k", keywords) is None
        assert validation.optional_list("top_k", keywords) == []
        assert validation.enum_value(pb.Rectify, "top_k", keywords) is None
    assert validation.optional(validation.int32, "top_k", {"top_k": 0}) == 0
    assert validation.stop_texts(None) == []


def test_enums_are_given_by_name() -> None:
    assert validation.enum_value(pb.Rectify, "rectify", {"rectify": "total"}) == pb.RECTIFY_TOTAL
    metrics = validation.enum_values(pb.Metric, "metrics", {"metrics": ("auprc", "soft_ns")})
    assert metrics == [pb.METRIC_AUPRC, pb.METRIC_SOFT_NS]
    for value in ("TOTAL", "RECTIFY_TOTAL", "unspecified", pb.RECTIFY_TOTAL, ["total"]):
        message = refusal(lambda value=value: validation.enum_value(pb.Rectify, "rectify", {"rectify": value}))  # type: ignore[misc]
        assert message == f"rectify: must be one of per_layer, total, none, per_head, not {value!r}"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), (0.5, 0.5), (np.float32(0.5), 0.5), (np.int64(3), 3.0), (Fraction(1, 4), 0.25), (Decimal("0.5"), 0.5),
     (float("inf"), float("inf"))],
)  # fmt: skip
def test_numbers(value: object, expected: float) -> None:
    number = validation.number("x", value)
    assert (number, type(number)) == (expected, float)


@pytest.mark.parametrize("value", [True, "1", b"1", None, 1j, [1.0], np.array([1.0, 2.0])])
def test_what_is_no_number(value: object) -> None:
    assert refusal(lambda: validation.number("x", value)).startswith("x: must be a number")


def test_integers_beyond_a_float() -> None:
    assert refusal(lambda: validation.number("x", 10**400)) == (
        "x: must be a number that a float can hold, not an integer of 1329 bits"
    )


@pytest.mark.parametrize(
    ("check", "bits"),
    [(validation.int32, 32), (validation.int64, 64), (lambda name, value: validation.integer(name, value, 8), 8)],
)
def test_integers_have_a_range(check: Callable[[str, object], int], bits: int) -> None:
    for accepted in (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 0):
        assert check("x", accepted) == accepted
    for refused in (-(2 ** (bits - 1)) - 1, 2 ** (bits - 1), 10**5000):
        assert refusal(lambda refused=refused: check("x", refused)).startswith(  # type: ignore[misc]
            f"x: must be a signed {bits}-bit integer, not "
        )


@pytest.mark.parametrize("value", [True, np.bool_(True), 1.0, "1", None, Fraction(2)])
def test_what_is_no_integer(value: object) -> None:
    assert refusal(lambda: validation.int32("x", value)) == f"x: must be an integer, not {value!r}"


def test_lists_name_the_item() -> None:
    assert validation.int32s("x", range(3)) == [0, 1, 2]
    assert validation.int32s("x", np.array([3, 4], np.int8)) == [3, 4]
    assert validation.int32s("x", (number for number in (5, 6))) == [5, 6]
    assert validation.int32s("x", []) == []
    assert validation.int32s("x", [-(1 << 31), (1 << 31) - 1]) == [-(1 << 31), (1 << 31) - 1]
    assert refusal(lambda: validation.int32s("x", [1, 1 << 31])).startswith("x[1]: must be a signed 32-bit integer")
    assert refusal(lambda: validation.int32s("x", [1, True])) == "x[1]: must be an integer, not True"
    assert refusal(lambda: validation.int32s("x", [1, "2"])) == "x[1]: must be an integer, not '2'"
    assert refusal(lambda: validation.texts("x", {"x": ["a", 2]})) == "x[1]: must be a text, not 2"
    assert refusal(lambda: validation.some_int32s("x", [])).startswith("x: is empty")


@pytest.mark.parametrize("value", ["abc", b"abc", {1: 2}, 3, None, np.array(3)])
def test_what_is_no_list(value: object) -> None:
    assert refusal(lambda: validation.as_list("x", value)) == f"x: must be a list, not {value!r}"


def test_texts_can_be_encoded() -> None:
    assert validation.text("x", "\U0001f642\x00") == "\U0001f642\x00"
    assert refusal(lambda: validation.text("x", b"a")) == "x: must be a text, not b'a'"
    assert "lone surrogate at position 1" in refusal(lambda: validation.text("x", "a\ud83d"))
    assert validation.stop_texts("ab") == ["ab"]
    assert validation.stop_texts(("a", "b")) == ["a", "b"]


def test_booleans_and_mappings() -> None:
    assert validation.boolean("x", False) is False
    assert refusal(lambda: validation.boolean("x", 1)) == "x: must be True or False, not 1"
    assert validation.mapping("x", {"a": 1}) == {"a": 1}
    assert refusal(lambda: validation.mapping("x", [("a", 1)])) == "x: must be a mapping, not [('a', 1)]"


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**6, b"x" * 10**6, [["x" * 100] * 9] * 9, {i: i for i in range(10**5)}, 10**5000, np.zeros(10**5),
        {"a": {"b": {"c": {"d": {}}}}},
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_values_of_any_size_are_shown_in_short(value: object) -> None:
    """In all their levels, too."""
    assert len(validation.short_repr(value)) <= 2200
    assert len(validation.short_repr([value])) <= 2200


def test_a_shortened_text_is_a_whole_literal() -> None:
    """No escape sequence is cut, so that the beginning can be copied."""
    text = "\u200b" * 100
    assert validation.short_repr(text) == repr(text[:60]) + "... (str, 100 in all)"
    assert validation.short_repr("it's") == '"it\'s"'


def test_names_are_joined() -> None:
    assert validation.join_names(["a", "b"]) == "a, b"
    assert validation.join_names([]) == "none"
