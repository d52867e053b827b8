"""Schemas of checks accept what the checks accept."""

from __future__ import annotations

from typing import Any

import pytest

from gradellm import InvalidRequestError
from gradellm_gateway.completions.request import COMPLETION_FIELDS
from gradellm_gateway.fields import FIELDS, boolean
from gradellm_gateway.openapi.schemas import keyword_schema, nullable, object_schema, schema_of
from gradellm_gateway.responses.request import RESPONSE_FIELDS
from gradellm_gateway.routes.tokenization import CHAT_FIELDS, DETOKENIZE_FIELDS, TEXT_FIELDS

jsonschema: Any = pytest.importorskip("jsonschema")
TABLES = (FIELDS, COMPLETION_FIELDS, RESPONSE_FIELDS, CHAT_FIELDS, TEXT_FIELDS, DETOKENIZE_FIELDS)
VALUES: tuple[Any, ...] = (
    *(True, False, 0, 1, 5, -1, 0.5, "", "a", "none", "auto", "text", "medium", "disabled", [], ["a"], [1], [[1]]),
    *([{}], {}, {"a": "b"}, {"a": 1}, {"type": "text"}, ["text"], {"format": {"type": "text"}}, {"effort": "none"}),
)
CHECKS = {f"{number}.{name}": check for number, table in enumerate(TABLES) for name, check in table.items()}


@pytest.mark.parametrize("name", CHECKS)
def test_what_a_check_accepts_its_schema_accepts(name: str) -> None:
    schema = schema_of(CHECKS[name])
    assert schema, "a check without a schema: describe it where it is defined"
    if "$ref" in schema:
        return
    validator = jsonschema.Draft202012Validator(schema)
    for value in VALUES:
        try:
            CHECKS[name]("x", value)
        except InvalidRequestError:
            continue
        if name.endswith((".messages", ".input")) and isinstance(value, list):  # whose elements are checked later
            continue
        assert validator.is_valid(value), value


def test_null_is_allowed_where_a_field_is_not_required() -> None:
    schema = object_schema({"a": boolean, "b": boolean}, ["a"])
    assert jsonschema.Draft202012Validator(schema).is_valid({"a": True, "b": None})
    for body in ({}, {"a": None}, {"a": True, "c": 1}, {"a": True, "b": 3}):
        assert not jsonschema.Draft202012Validator(schema).is_valid(body)
    assert nullable({}) == {}


@pytest.mark.parametrize(
    ("annotation", "valid", "invalid"),
    [
        ("int | None", [1, None], ["a", 1.5]),
        ("str | Sequence[str] | None", ["a", ["a"], None], [1, [1]]),
        ("Sequence[float] | None", [[0.5, 1]], [["a"], 1]),
        ("Delivery | None", ["chunked", None], ["other", 1]),
        ("Preset | bool | None", ["paper", False], ["other", 1]),
        ("Mapping[str, Any] | None", [{}, 1, None], []),
    ],
)
def test_keywords_have_the_schema_of_their_annotation(annotation: str, valid: list[Any], invalid: list[Any]) -> None:
    validator = jsonschema.Draft202012Validator(keyword_schema(annotation))
    assert all(validator.is_valid(value) for value in valid)
    assert not any(validator.is_valid(value) for value in invalid)
