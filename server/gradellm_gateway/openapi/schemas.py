"""JSON schemas of field checks. A check is registered with its schema where it is defined."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, get_args

from gradellm import models

__all__ = ["Schema", "described", "keyword_schema", "nullable", "object_schema", "schema_of"]

Schema = dict[str, Any]
_Check = TypeVar("_Check", bound=Callable[..., None])
_SCHEMAS: dict[object, Schema] = {}


def described(schema: Schema) -> Callable[[_Check], _Check]:
    """A decorator that registers a check's schema."""

    def register(check: _Check) -> _Check:
        _SCHEMAS[check] = schema
        return check

    return register


def schema_of(check: object) -> Schema:
    """Return a check's schema; one that allows everything for a check without one."""
    return _SCHEMAS.get(check, {})


def nullable(schema: Schema) -> Schema:
    """Return a schema that allows null, too: it counts as absent."""
    kind = schema.get("type")
    if not schema or kind == "null":
        return schema
    if isinstance(kind, str) and "enum" not in schema:
        return {**schema, "type": [kind, "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def object_schema(fields: Mapping[str, object], required: Iterable[str] = ()) -> Schema:
    """Return the schema of a request with these fields and no others, from their checks."""
    required = list(required)
    properties = {
        name: schema_of(check) if name in required else nullable(schema_of(check)) for name, check in fields.items()
    }
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": required} if required else schema


_KINDS: dict[str, Schema] = {
    "None": {"type": "null"},
    "bool": {"type": "boolean"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "str": {"type": "string"},
    **{
        f"Sequence[{name}]": {"type": "array", "items": {"type": kind}}
        for name, kind in (("int", "integer"), ("float", "number"), ("str", "string"))
    },
}


def keyword_schema(annotation: str) -> Schema:
    """Return the schema of an SDK keyword from its annotation, such as "int | None"; one that allows all for others."""
    kinds = []
    for name in annotation.split(" | "):
        values = get_args(getattr(models, name, None))
        if not values and name not in _KINDS:
            return {}
        kinds.append({"enum": list(values)} if values else _KINDS[name])
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
