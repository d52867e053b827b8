"""Checks of a JSON schema before it is compiled, and the place of a keyword in it.

Places are JSON pointers from the schema's root, as `$ref` writes them: #/properties/name/pattern.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.utils.bounded_json import escaped, read_json

MAX_SUBSCHEMAS = 20_000
# Compiling an object takes time by the square of its properties: 60 ms for 500, 0.3 s for 1000, 1 s for 2000.
MAX_PROPERTIES = 500
MAX_ALL_PROPERTIES = 5_000
MAX_PATTERN_PROPERTIES = 32  # each is checked for names that another one has, too
MAX_OPTIONAL = 6  # optional properties that are counted, in 64 alternatives
MAX_BRANCHES = 1_000  # the parser follows at most 2000 at a time

FIELD = "structured_output.json_schema"

# Keywords that hold a schema, a list of schemas, and schemas by name.
_SCHEMA = (
    "additionalItems", "additionalProperties", "contains", "contentSchema", "else", "if", "items", "not",
    "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_LISTS = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_BY_NAME = ("$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties")
# Assertions that the compiler would pass over without a word. "x-guidance" changes what the compiler checks.
_PASSED_OVER = ("$dynamicRef", "$recursiveRef", "dependencies", "x-guidance")


# Keywords that `_with_counted_properties` replaces, and those beside which it does not know what is described.
_COUNTED = ("minProperties", "maxProperties", "properties", "required", "additionalProperties")
_OTHER_SHAPES = frozenset({"patternProperties", "anyOf", "allOf", "oneOf", "$ref", "not", "if"})
_COUNT_LIMITS = {
    "properties": MAX_PROPERTIES,
    "patternProperties": MAX_PATTERN_PROPERTIES,
    "anyOf": MAX_BRANCHES,
    "oneOf": MAX_BRANCHES,
}


def parse_schema(text: str) -> dict[str, Any] | bool:
    """A schema's JSON, checked for nesting, size and keywords that cannot be kept.

    Raises:
        InvalidRequestError: naming the place in the schema.
    """
    schema = read_json(FIELD, text, remedy="flatten it, or use $defs")
    if not isinstance(schema, dict | bool):
        raise InvalidRequestError(FIELD, "must be a JSON object, or true or false")
    num_properties = 0
    for num_schemas, (place, subschema) in enumerate(subschemas(schema), start=1):
        num_properties += _num_items(subschema, "properties")
        for name, limit in _COUNT_LIMITS.items():
            _check_count(f"{place}/{name}", name, _num_items(subschema, name), limit)
        _check_count("#", "subschemas", num_schemas, MAX_SUBSCHEMAS)
        _check_count("#", "properties in all", num_properties, MAX_ALL_PROPERTIES)
        _check_keywords(place, subschema)
    return schema


def subschemas(schema: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schema and all in it, with their places, each before what it contains, in the text's order."""
    stack: list[tuple[str, object]] = [("#", schema)]
    while stack:
        place, subschema = stack.pop()
        if not isinstance(subschema, dict):
            continue
        yield place, subschema
        inner = [(f"{place}/{path}", value) for path, value in _parts(subschema)]
        stack += reversed(inner)


def place_of(schema: object, keyword: str, value: object = None) -> str:
    """The place of the first subschema with a keyword, with that value if one is given; "#" where there is none."""
    for place, subschema in subschemas(schema):
        if keyword in subschema and value in (None, subschema[keyword]):
            return f"{place}/{keyword}"
    return "#"


def without_idle_keywords(schema: object) -> object:
    """A copy of a checked schema without keywords that assert nothing, but that the compiler does not take.

    These are `uniqueItems: false`, `propertyNames` that all names satisfy, and numbers of properties that every object
    with the required ones, and no others than the named ones, has anyway. Other numbers become alternatives.
    """
    if isinstance(schema, list):
        return [without_idle_keywords(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name: value for name, value in schema.items() if not _is_idle(name, value, schema)}
    for name in _BY_NAME:
        if isinstance(kept.get(name), dict):
            kept[name] = {key: without_idle_keywords(value) for key, value in kept[name].items()}
    for name in {*_SCHEMA, *_LISTS} & kept.keys():
        kept[name] = without_idle_keywords(kept[name])
    return _with_counted_properties(kept)


def _with_counted_properties(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with minProperties or maxProperties, as alternatives: in each, some optional properties are required.

    The compiler counts properties only where all named ones are required. The alternatives have no unnamed properties,
    so they describe a part of what the schema does. A schema that cannot be written like this is returned as it is.
    """
    low, high = schema.get("minProperties", 0), schema.get("maxProperties", math.inf)
    properties, required = schema.get("properties"), schema.get("required", [])
    others = _OTHER_SHAPES & schema.keys()
    if not schema.keys() & {"minProperties", "maxProperties"} or not isinstance(properties, dict) or others:
        return schema
    if not isinstance(required, list) or not isinstance(low, int) or not isinstance(high, int | float):
        return schema
    optional = [name for name in properties if name not in required]
    if not 0 < len(optional) <= MAX_OPTIONAL or not all(name in properties for name in required):
        return schema
    rest = {name: value for name, value in schema.items() if name not in (*_COUNTED, "$defs", "definitions")}
    branches = []
    for size in range(len(optional), -1, -1):
        if low <= len(required) + size <= high:
            for chosen in combinations(optional, size):
                present = {name: value for name, value in properties.items() if name in required or name in chosen}
                branches.append(
                    {**rest, "properties": present, "required": list(present), "additionalProperties": False}
                )
    definitions: dict[str, Any] = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    return {**definitions, "anyOf": branches} if branches else schema


def _is_idle(name: str, value: object, schema: Mapping[str, Any]) -> bool:
    match name:
        case "uniqueItems":
            return value is False or (value is True and schema.get("maxItems") in (0, 1))
        case "propertyNames":
            return value in (True, {}, {"type": "string"})
        case "minProperties":
            return isinstance(value, int) and value <= _num_items(schema, "required")
        case "maxProperties":
            is_closed = schema.get("additionalProperties") is False and not _num_items(schema, "patternProperties")
            return is_closed and isinstance(value, int) and value >= _num_items(schema, "properties")
    return False


def _parts(schema: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """What a schema contains, with its path from there."""
    for name, value in schema.items():
        if name in _BY_NAME and isinstance(value, dict):
            for key, subschema in value.items():
                yield f"{name}/{escaped(key)}", subschema
        elif name in _LISTS and isinstance(value, list):
            for index, subschema in enumerate(value):
                yield f"{name}/{index}", subschema
        elif name in _SCHEMA:
            yield name, value


def _check_keywords(place: str, schema: Mapping[str, Any]) -> None:
    """Refuse keywords that would be passed over, and references to other documents.

    Raises:
        InvalidRequestError: naming keyword and place.
    """
    for name in _PASSED_OVER:
        if name in schema:
            raise InvalidRequestError(FIELD, f'at {place}: "{name}" is not supported; leave it out')
    ref = schema.get("$ref")
    if isinstance(ref, str) and not ref.startswith("#"):
        raise InvalidRequestError(
            FIELD, f'at {place}/$ref: "{ref[:40]}" is another document; put it into $defs, and refer to #/$defs/...'
        )


def _num_items(schema: Mapping[str, Any], name: str) -> int:
    value = schema.get(name)
    return len(value) if isinstance(value, dict | list) else 0


def _check_count(place: str, kind: str, count: int, limit: int) -> None:
    if count > limit:
        raise InvalidRequestError(FIELD, f"at {place}: {count:,} {kind}; the limit is {limit:,}: leave some out")
