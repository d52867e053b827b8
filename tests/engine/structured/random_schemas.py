"""Random JSON schemas: hypothesis-jsonschema draws them from schemas of schemas, hypothesis puts them together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import utils as conjecture
from hypothesis_jsonschema import _from_schema, from_schema

NAMES = ["name", "age", "tags", "city", "a b", "é"]
PATTERNS = ["^[a-z]{2,8}$", "^[A-Z][a-z]+$", "[0-9]", "^\\d{4}-\\d{2}$", "^(red|green|blue)$", "^\\w+$"]
FORMATS = ["date", "time", "date-time", "email", "uuid", "ipv4", "ipv6", "hostname", "uri", "duration"]


def _count(most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": 0, "maximum": most}


def _object(**properties: Any) -> dict[str, Any]:
    """A schema's part of one type, with some of these keywords."""
    required = [name for name, schema in properties.items() if "const" in schema]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _type(name: str) -> dict[str, Any]:
    return {"const": name}


_INTEGER = {"type": "integer", "minimum": -1000, "maximum": 1000}
_VALUE = {"enum": [None, True, 0, -7, 2.5, "", "red", "é", [], [1, "x"], {}, {"a": 1}]}
_LEAVES = [
    _object(type=_type("string"), minLength=_count(3), maxLength={"type": "integer", "minimum": 3, "maximum": 30}),
    _object(type=_type("string"), pattern={"enum": PATTERNS}),
    _object(type=_type("string"), format={"enum": FORMATS}),
    _object(type=_type("integer"), minimum=_INTEGER, multipleOf={"type": "integer", "minimum": 1, "maximum": 10}),
    _object(type=_type("integer"), maximum=_INTEGER),
    _object(type=_type("number"), minimum={"enum": [-2.5, 0, 0.125, 99]}, exclusiveMaximum={"enum": [1001, 1234.5]}),
    _object(type={"enum": ["boolean", "null"]}),
    _object(type={"enum": [["string", "null"], ["integer", "boolean"]]}),
    _object(enum={"type": "array", "items": _VALUE, "minItems": 1, "maxItems": 4}),
    _object(const=_VALUE),
]  # schemas of schemas without schemas in them
_ARRAY = _object(
    type=_type("array"),
    minItems=_count(2),
    maxItems={"type": "integer", "minimum": 2, "maximum": 5},
    uniqueItems={"const": False},
)
_OBJECT = _object(
    type=_type("object"),
    required={"type": "array", "items": {"enum": NAMES}, "maxItems": 3, "uniqueItems": True},
    minProperties=_count(2),
    maxProperties={"type": "integer", "minimum": 3, "maximum": 6},
    additionalProperties={"enum": [True, False, {"type": "integer"}]},
)
# Keywords that are not supported, for about one leaf in 250.
_RARE = [{"not": {"type": "string"}}, {"type": "array", "uniqueItems": True}, {"if": {"minimum": 3}, "then": {}}]


def _with_properties(schema: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    """An object's schema, with those required that it has."""
    required = [name for name in schema.get("required", []) if name in properties]
    return {**schema, "properties": properties, "required": required}


def schemas() -> st.SearchStrategy[Any]:
    """Schemas of several levels."""
    leaves = st.one_of(*map(from_schema, _LEAVES))
    rare = st.sampled_from(_RARE)
    leaf = st.integers(0, 999).flatmap(lambda number: rare if 500 < number <= 504 else leaves)
    arrays, objects = from_schema(_ARRAY), from_schema(_OBJECT)

    def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        several = st.lists(inner, min_size=1, max_size=3)
        by_name = st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
        by_pattern = st.dictionaries(st.sampled_from(["^x_", "^[0-9]+$"]), inner, min_size=1)
        return st.one_of(
            st.builds(lambda schema, items: {**schema, "items": items}, arrays, inner),
            st.builds(lambda items: {"type": "array", "prefixItems": items, "items": False}, several),
            st.builds(_with_properties, objects, by_name),
            st.builds(lambda properties: {"type": "object", "properties": properties}, by_name),
            st.builds(
                lambda patterns: {"type": "object", "patternProperties": patterns, "additionalProperties": False},
                by_pattern,
            ),
            st.builds(lambda branches: {"anyOf": branches}, several),
        )

    def with_definition(part: Any, schema: Any) -> dict[str, Any]:
        return {"$defs": {"part": part}, "prefixItems": [{"$ref": "#/$defs/part"}, schema], "type": "array"}

    levels = st.recursive(leaf, nested, max_leaves=8)
    return st.one_of(levels, levels, levels, st.builds(with_definition, levels, leaf))


class _Many:
    """`hypothesis`'s loop over drawn elements with the method `more`, by which hypothesis-jsonschema 0.23 loops."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        self._many = conjecture.many(*args, **keywords)
        self._elements: Iterator[None] | None = None

    def more(self) -> bool:
        if self._elements is None:
            self._elements = iter(self._many.__enter__())
        is_more = next(self._elements, self) is None
        if not is_more:
            self._many.__exit__(None)
        return is_more

    def reject(self, why: str | None = None) -> None:
        self._many.reject(why)


def draw_schemas(count: int) -> list[Any]:
    """The same `count` schemas in every run, all different."""
    drawn: dict[str, Any] = {}

    @seed(24)
    @settings(
        max_examples=2 * count,
        deadline=None,
        database=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(schemas())
    def draw(schema: Any) -> None:
        drawn.setdefault(json.dumps(schema, sort_keys=True), schema)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_from_schema, "cu", SimpleNamespace(many=_Many))
        draw()
    return list(drawn.values())[:count]
