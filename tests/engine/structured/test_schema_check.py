"""JSON schemas before they are compiled: nesting, sizes, keywords that would be passed over, places."""

from __future__ import annotations

import json

import pytest

from gradellm_engine import InvalidRequestError
from gradellm_engine.structured.schema_check import (
    MAX_DEPTH,
    MAX_PROPERTIES,
    parse_schema,
    place_of,
    subschemas,
    without_idle_keywords,
)


def nested(depth: int) -> str:
    return '{"items":' * depth + "{}" + "}" * depth


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ('{"const": NaN}', "NaN is not a JSON number"),
        ('{"maximum": ' + "9" * 5000 + "}", "4300 digits"),
        ("[]", "must be a JSON object"),
        (nested(MAX_DEPTH + 1), "nested more than 100 deep"),
        (nested(100_000), "nested more than 100 deep"),
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
    assert parse_schema(nested(MAX_DEPTH))
    assert parse_schema('{"properties": {"x-guidance": {"type": "string"}}, "const": {"$ref": "http://x"}}')
    assert parse_schema("true") is True


def test_places_are_json_pointers_of_subschemas_only() -> None:
    schema = {
        "properties": {"a/b~": {"items": [{"not": {}}]}, "not": {"const": {"pattern": "x"}}},
        "examples": [{"pattern": "y"}],
    }
    places = [place for place, _, _ in subschemas(schema)]
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
