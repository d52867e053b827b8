"""What an answer has to be, from OpenAI's `response_format` or vLLM's `structured_outputs` to the SDK's keywords."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradellm import InvalidRequestError
from gradellm_gateway.fields import boolean, list_, object_, quoted, text, truncated

_FORMATS = ("text", "json_object", "json_schema")
# Fields of structured_outputs, their keywords, and what they hold.
_CONSTRAINTS = {
    "json": "json_schema",
    "json_object": "json_object",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
}


def structured_output(body: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The keyword that constrains the answer, and the path of the caller's field for it; nothing for any text.

    Raises:
        InvalidRequestError: naming the caller's field.
    """
    return _constraint(body, "response_format", body.get("response_format"))


def text_format(body: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The same of a request of the Responses API, whose format is `text.format`."""
    return _constraint(body, "text.format", (body.get("text") or {}).get("format"), is_flat=True)


def _constraint(
    body: Mapping[str, Any], path: str, value: Mapping[str, Any] | None, *, is_flat: bool = False
) -> tuple[dict[str, Any], str]:
    by_format = None if value is None else _of_format(path, value, is_flat)
    by_constraint = _of_structured_outputs(body.get("structured_outputs"))
    if by_format is not None and by_constraint is not None:
        raise InvalidRequestError.of("structured_outputs", f"cannot be combined with {path}; leave one out")
    return by_format or by_constraint or ({}, "")


def _of_format(path: str, value: Mapping[str, Any], is_flat: bool) -> tuple[dict[str, Any], str] | None:
    """The keyword of a format. `strict`, `name` and `description` have no effect: schemas are kept.

    `is_flat`: the schema stands beside `type`, not in `json_schema`.
    """
    kind = value.get("type")
    if kind not in _FORMATS:
        raise InvalidRequestError.of(
            f"{path}.type", f"{quoted(kind)} is not supported here; there are {', '.join(_FORMATS)}"
        )
    if kind != "json_schema" or not is_flat:
        _refuse_others(path, value, {"type", "json_schema"} if kind == "json_schema" else {"type"})
    if kind == "text":
        return None
    if kind == "json_object":
        return {"json_object": True}, path
    if is_flat:
        described = {name: given for name, given in value.items() if name != "type"}
    else:
        path = f"{path}.json_schema"
        object_(path, value.get("json_schema"))
        described = value["json_schema"]
    _refuse_others(path, described, {"name", "description", "schema", "strict"})
    for name, check in (("name", text), ("description", text), ("strict", boolean)):
        if described.get(name) is not None:
            check(f"{path}.{name}", described[name])
    schema = described.get("schema")
    if schema is None:
        raise InvalidRequestError.of(f"{path}.schema", "is missing")
    if not isinstance(schema, bool):
        object_(f"{path}.schema", schema)
    return {"json_schema": schema}, f"{path}.schema"


def _of_structured_outputs(value: Mapping[str, Any] | None) -> tuple[dict[str, Any], str] | None:
    """The keyword of vLLM's `structured_outputs`. `disable_any_whitespace` has no effect: white space is fixed."""
    if value is None:
        return None
    _refuse_others("structured_outputs", value, {*_CONSTRAINTS, "disable_any_whitespace"})
    if value.get("disable_any_whitespace") is not None:
        boolean("structured_outputs.disable_any_whitespace", value["disable_any_whitespace"])
    for name in _CONSTRAINTS:
        if value.get(name) is not None:
            _check(name, f"structured_outputs.{name}", value[name])
    given = [name for name in _CONSTRAINTS if value.get(name) is not None]
    if value.get("json_object") is False:
        given.remove("json_object")
    if len(given) != 1:
        names = " and ".join(given) or "none"
        raise InvalidRequestError.of(
            "structured_outputs", f"give exactly one of {', '.join(_CONSTRAINTS)}; there were {names}"
        )
    return {_CONSTRAINTS[given[0]]: value[given[0]]}, f"structured_outputs.{given[0]}"


def _check(name: str, path: str, value: object) -> None:
    match name:
        case "json":
            if not isinstance(value, str | bool | Mapping):
                raise InvalidRequestError.of(path, f"must be a JSON schema, as an object or text, not {quoted(value)}")
        case "json_object":
            boolean(path, value)
        case "choice":
            list_(path, value)
            for index, choice in enumerate(value if isinstance(value, list) else []):
                text(f"{path}[{index}]", choice)
        case _:
            text(path, value)


def _refuse_others(path: str, value: Mapping[str, Any], known: set[str]) -> None:
    """Refuse unknown fields, unless they are null, or false as their default is."""
    for name, given in value.items():
        if name not in known and given not in (None, False):
            raise InvalidRequestError.of(
                f"{path}.{truncated(name)}",
                f"{quoted(given)} is not supported here; there are {', '.join(sorted(known))}",
            )
