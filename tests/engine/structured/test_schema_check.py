"""JSON schemas before they are compiled: nesting, sizes, keywords that would be passed over, places."""

from __future__ import annotations

import json

import jsonschema
import pytest

from gradellm_engine import InvalidRequestError
from gradellm_engine.structured.schema_check import (
    MAX_PROPERTIES,
    parse_schema,
    place_of,
    subschemas,
    without_idle_keywords,
)
from gradellm_engine.utils.bounded_json import MAX_LEVELS


def nested(depth: int) -> str:
    return '{"items":' * depth + "{}" + "}" * depth


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ('{"const": NaN}', "at #/const: NaN is not a JSON number"),
        ('{"items": {"maximum": 1e999}}', "at #/items/maximum: 1e999 is not a JSON number"),
        ('{"maximum": ' + "9" * 5000 + "}", "4,300 digits"),
        ('{"const": "\\ud800"}', "at #/const: a lone surrogate"),
        ("[]", "must be a JSON object"),
        (nested(MAX_LEVELS), "/items/...: nested deeper than 64 levels, which is the limit: flatten it, or use $defs"),
        (nested(100_000), "nested deeper than 64 levels, which is the limit: flatten it, or use $defs"),
        ('{"properties": {"a": {"$dynamicRef": "#x"}}}', 'at #/properties/a: "$dynamicRef"'),
        ('{"anyOf": [{}, {"x-guidance": {"lenient": true}}]}', 'at #/anyOf/1: "x-guidance"'),
        ('{"items": {"$ref": "https://example.com/s.json"}}', "at #/items/$ref"),
        (json.dumps({"properties": {str(i): {} for i in range(501)}}), "at #/properties: 501 properties"),
        (json.dumps({"items": {"anyOf": [{}] * 1001}}), "at #/items/anyOf: 1,001 anyOf; the limit is 1,000"),
        (json.dumps({"prefixItems": [{}] * 20_000}), "20,001 subschemas"),
        (
            json.dumps({"prefixItems": [{"properties": {str(i): {} for i in range(MAX_PROPERTIES)}}] * 11}),
            "properties in all",
        ),
    ],
)
def test_refusals_name_the_place_and_the_limit(text: str, words: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_schema(text)
    assert caught.value.field == "structured_output.json_schema"
    assert words in caught.value.description


def test_the_deepest_schema_and_names_like_keywords_pass() -> None:
    assert parse_schema(nested(MAX_LEVELS - 1))
    assert parse_schema('{"properties": {"x-guidance": {"type": "string"}}, "const": {"$ref": "http://x"}}')
    assert parse_schema("true") is True


def test_places_are_json_pointers_of_subschemas_only() -> None:
    schema = {
        "properties": {"a/b~": {"items": [{"not": {}}]}, "not": {"const": {"pattern": "x"}}},
        "examples": [{"pattern": "y"}],
    }
    places = [place for place, _ in subschemas(schema)]
    assert places == [
        "#",
        "#/properties/a~1b~0",
        "#/properties/a~1b~0/items/0",
        "#/properties/a~1b~0/items/0/not",
        "#/properties/not",
    ]
    assert place_of(schema, "not") == "#/properties/a~1b~0/items/0/not"
    assert place_of(schema, "pattern") == "#"
    assert place_of({"anyOf": [{"format": "a"}, {"format": "b"}]}, "format", "b") == "#/anyOf/1/format"


def test_keywords_that_assert_nothing_are_taken_out_of_schemas_alone() -> None:
    schema = {
        "uniqueItems": False,
        "propertyNames": {"type": "string"},
        "properties": {"uniqueItems": {"uniqueItems": False, "type": "array"}},
        "items": [{"propertyNames": True}, {"uniqueItems": True}],
        "const": {"uniqueItems": False},
    }
    assert without_idle_keywords(schema) == {
        "properties": {"uniqueItems": {"type": "array"}},
        "items": [{}, {"uniqueItems": True}],
        "const": {"uniqueItems": False},
    }


def test_properties_are_counted_by_alternatives_in_which_they_are_required() -> None:
    schema = {
        "$defs": {"a": True},
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {}, "c": {"$ref": "#/$defs/a"}},
        "required": ["b"],
        "minProperties": 2,
        "maxProperties": 2,
    }
    rewritten = without_idle_keywords(schema)
    assert isinstance(rewritten, dict)
    assert rewritten["$defs"] == {"a": True}
    assert [list(branch["properties"]) for branch in rewritten["anyOf"]] == [["a", "b"], ["b", "c"]]
    for branch in rewritten["anyOf"]:
        assert branch["required"] == list(branch["properties"])
        assert branch["additionalProperties"] is False
    for values in ({"b": 1}, {"a": 1, "b": 2, "c": 3}):
        assert not jsonschema.Draft202012Validator(rewritten).is_valid(values)
    assert jsonschema.Draft202012Validator(rewritten).is_valid({"b": 1, "c": 2})


@pytest.mark.parametrize(
    "schema",
    [
        {"minProperties": 1},
        {"properties": {"a": {}}, "minProperties": 2},
        {"properties": {str(i): {} for i in range(7)}, "minProperties": 2},
        {"properties": {"a": {}}, "patternProperties": {"b": {}}, "minProperties": 1},
        {"properties": {"a": {}}, "minProperties": "1"},
    ],
)
def test_other_numbers_of_properties_are_the_compilers(schema: dict[str, object]) -> None:
    assert without_idle_keywords(schema) == schema
