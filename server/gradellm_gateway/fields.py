"""Validation of a chat request's fields, and the mapping of field names between caller and server.

Every known field has a check, as strict as JSON's types: true is not a number, "false" not a boolean. Errors name the
field as the caller wrote it; `FieldNames` renames fields in errors of the SDK and the server.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gradellm import InvalidRequestError, Violation
from gradellm_gateway.errors import limit_count, named_if_too_large
from gradellm_gateway.openapi.schemas import Schema, described, schema_of

Check = Callable[[str, object], None]
"""check(path, value) raises InvalidRequestError if the value is not valid for the field at that path."""

_MAX_QUOTED = 40  # characters of a text that an error quotes
MAX_CHOICES = 16  # of one request: as many as a server runs at a time by default
MAX_MESSAGES = 10_000  # converted one by one, in a second; servers have a limit of their own, by their prompts' tokens
MAX_CALLS = 512  # of a message, as servers have it
_STREAM_OPTIONS = ("include_usage", "continuous_usage_stats")
ROLES = ("system", "developer", "user", "assistant", "tool")


def quoted(value: object) -> str:
    """A JSON value for an error message: a short text or number as it is, anything larger by its kind and size."""
    if isinstance(value, str):
        return json.dumps(value) if len(value) <= _MAX_QUOTED else f"{json.dumps(value[:_MAX_QUOTED])}..."
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "[]"
    if isinstance(value, Mapping):
        return "an object" if value else "{}"
    if isinstance(value, int) and value.bit_length() > 256:
        return "a very long integer"
    return json.dumps(value)


def truncated(name: str) -> str:
    """A field's name for an error message, at most 40 characters of it: callers choose names freely."""
    return name if len(name) <= _MAX_QUOTED else f"{name[:_MAX_QUOTED]}..."


def _must_be(kind: str, is_valid: Callable[[object], bool], schema: Schema) -> Check:
    @described(schema)
    def check(path: str, value: object) -> None:
        if not is_valid(value):
            raise InvalidRequestError.of(path, f"must be {kind}, not {quoted(value)}")

    return check


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


boolean = _must_be("true or false", lambda value: isinstance(value, bool), {"type": "boolean"})
integer = _must_be(
    "an integer", lambda value: isinstance(value, int) and not isinstance(value, bool), {"type": "integer"}
)
number = _must_be("a number", _is_number, {"type": "number"})
text = _must_be("a text", lambda value: isinstance(value, str), {"type": "string"})
object_ = _must_be("an object", lambda value: isinstance(value, Mapping), {"type": "object"})
list_ = _must_be("a list", lambda value: isinstance(value, list), {"type": "array"})


@described({"type": "array", "items": {"type": "integer"}})
def integers(path: str, value: object) -> None:
    """A list of integers."""
    list_(path, value)
    found = value if isinstance(value, list) else []
    if not set(map(type, found)) <= {int}:  # paths of a million integers take a second to write
        for index, element in enumerate(found):
            integer(f"{path}[{index}]", element)


@described({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})
def texts(path: str, value: object) -> None:
    """A text, or a list of texts."""
    if isinstance(value, list):
        for index, element in enumerate(value):
            text(f"{path}[{index}]", element)
    elif not isinstance(value, str):
        raise InvalidRequestError.of(path, f"must be a text or a list of texts, not {quoted(value)}")


@described({"type": "object", "additionalProperties": {"type": "string"}})
def _texts_by_name(path: str, value: object) -> None:
    object_(path, value)
    for name, element in _items(value):
        text(f"{path}.{truncated(name)}", element)


@described({"type": "object", "properties": {name: {"type": "boolean"} for name in _STREAM_OPTIONS}})
def _stream_options(path: str, value: object) -> None:
    object_(path, value)
    for name, option in _items(value):
        if name not in (*_STREAM_OPTIONS, "include_obfuscation"):
            raise InvalidRequestError.of(
                f"{path}.{truncated(name)}", f"is not known; there are {' and '.join(_STREAM_OPTIONS)}"
            )
        if option is not None:
            boolean(f"{path}.{name}", option)


def _items(value: object) -> Iterable[tuple[str, object]]:
    return value.items() if isinstance(value, Mapping) else ()


def only(check: Check, *values: object) -> Check:
    """A check for an unsupported feature: accepts only the values that leave it off."""

    @described({**schema_of(check), "enum": list(values)})
    def checked(path: str, value: object) -> None:
        check(path, value)
        if value not in values:
            raise InvalidRequestError.of(path, f"{quoted(value)} is not supported here; leave it out")

    return checked


@described({"type": "object", "additionalProperties": {"type": "number"}})
def _numbers_by_token(path: str, value: object) -> None:
    object_(path, value)
    for name, element in _items(value):
        if not re.fullmatch(r"[0-9]{1,10}", name):
            raise InvalidRequestError.of(f"{path}.{truncated(name)}", 'must be a token id as a text, such as "15"')
        number(f"{path}.{name}", element)


@described({"type": "integer", "minimum": 1, "maximum": MAX_CHOICES})
def _num_choices(path: str, value: object) -> None:
    integer(path, value)
    if not (isinstance(value, int) and 1 <= value <= MAX_CHOICES):
        raise InvalidRequestError.of(path, f"must lie between 1 and {MAX_CHOICES}, not {quoted(value)}")


@described(
    {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "properties": {
                "role": {"type": "string", "enum": list(ROLES)},
                "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]},
            },
            "required": ["role", "content"],
        },
    }
)
def message_list(path: str, value: object) -> None:
    """A list of messages, which `messages` checks one by one."""
    list_(path, value)
    limit_count(path, value, MAX_MESSAGES, "messages")


@described({"$ref": "#/components/schemas/Attribution"})
def attribution(path: str, value: object) -> None:
    """A `gradellm` object, whose fields the SDK checks."""
    object_(path, value)


@described(
    {"anyOf": [{"type": "string", "enum": ["none", "auto", "required"]}, {"type": "object", "minProperties": 1}]}
)
def _tool_choice(path: str, value: object) -> None:
    if value not in ("none", "auto", "required") and not (isinstance(value, Mapping) and value):
        raise InvalidRequestError.of(path, f'must be "none", "auto", "required" or an object, not {quoted(value)}')


FIELDS: dict[str, Check] = {
    "model": text,
    "messages": message_list,
    "stream": boolean,
    "stream_options": _stream_options,
    "max_tokens": integer,
    "max_completion_tokens": integer,
    "temperature": number,
    "top_p": number,
    "seed": integer,
    "stop": texts,
    "logprobs": boolean,
    "top_logprobs": integer,
    "return_token_ids": boolean,
    "n": _num_choices,
    "top_k": integer,
    "min_p": number,
    "repetition_penalty": number,
    "frequency_penalty": number,
    "presence_penalty": number,
    "logit_bias": _numbers_by_token,
    "min_tokens": integer,
    "ignore_eos": boolean,
    "stop_token_ids": integers,
    "skip_special_tokens": boolean,
    "chat_template_kwargs": object_,
    "add_generation_prompt": boolean,
    "continue_final_message": boolean,
    "gradellm": attribution,
    # Accepted without effect on the completion.
    "user": text,
    "metadata": _texts_by_name,
    "store": boolean,
    "safety_identifier": text,
    "prompt_cache_key": text,
    "prompt_cache_retention": text,
    "service_tier": text,
    "tools": list_,
    "tool_choice": _tool_choice,
    "parallel_tool_calls": boolean,
    "include_reasoning": boolean,
    # Not supported: accepted only with the value that leaves it off.
    "use_beam_search": only(boolean, False),
    "length_penalty": only(number, 1),
    "include_stop_str_in_output": only(boolean, False),
    "spaces_between_special_tokens": only(boolean, True),
    "add_special_tokens": only(boolean, False),
    "functions": only(list_, []),
    "function_call": only(text, "none", "auto"),
    "response_format": object_,
    "structured_outputs": object_,
    "reasoning_effort": only(text, "none"),
    "modalities": only(list_, ["text"]),
    "verbosity": only(text, "medium"),
}
"""Checks by field name. null is the same as absent, except for `messages`."""


def check_fields(body: Mapping[str, Any], fields: Mapping[str, Check] = FIELDS) -> None:
    """Raise InvalidRequestError for the first field that is unknown or invalid."""
    for name, value in body.items():
        if value is None:
            continue
        check = fields.get(name)
        if check is None:
            raise InvalidRequestError.of(truncated(name), f"{quoted(value)} is not supported here; leave it out")
        check(name, value)


# --- messages -----------------------------------------------------------------------------------------------------


def messages(value: object) -> list[dict[str, Any]]:
    """The SDK's messages. Content parts are joined; fields that a role does not have are refused unless empty."""
    list_("messages", value)
    converted = [
        _message(f"messages[{index}]", message)
        for index, message in enumerate(value if isinstance(value, list) else [])
    ]
    if not converted:
        raise InvalidRequestError.of("messages", "must be a list of at least one message")
    return converted


def _message(path: str, message: object) -> dict[str, Any]:
    object_(path, message)
    fields = dict(_items(message))
    has_calls = fields.get("role") == "assistant" and bool(fields.get("tool_calls"))
    if has_calls:
        fields.setdefault("content", None)
    for name in ("role", "content"):
        if name not in fields:
            raise InvalidRequestError.of(f"{path}.{name}", "is missing")
    role = fields.pop("role")
    text(f"{path}.role", role)
    if role not in ROLES:
        raise InvalidRequestError.of(f"{path}.role", f"{quoted(role)} is not supported here; there are {listed(ROLES)}")
    content = fields.pop("content")
    content = "" if content is None and role == "assistant" else _content(f"{path}.content", content)
    extra = _extra_fields(path, str(role), fields)
    _refuse_other_fields(path, fields)
    return {"role": "system" if role == "developer" else str(role), "content": content, **extra}


_EXTRA_TEXTS = {"tool": ("tool_call_id",), "assistant": ("reasoning_content", "reasoning")}


def _extra_fields(path: str, role: str, fields: dict[str, object]) -> dict[str, Any]:
    """Take a message's name, and what only assistants and tools have, out of its fields."""
    extra: dict[str, Any] = {}
    for name in ("name", *_EXTRA_TEXTS.get(role, ())):
        if (value := fields.pop(name, None)) is not None:
            text(f"{path}.{name}", value)
            extra[name] = value
    if role == "assistant":
        fields.pop("parsed", None)  # of what the openai package's `parse` returns
    if "reasoning_content" in extra:  # an assistant's has both names
        extra.pop("reasoning", None)
    calls = fields.pop("tool_calls", None) if role == "assistant" else None
    if calls:
        list_(f"{path}.tool_calls", calls)
        limit_count(f"{path}.tool_calls", calls, MAX_CALLS, "calls")
        found = enumerate(calls if isinstance(calls, list) else [])
        extra["tool_calls"] = [_tool_call(f"{path}.tool_calls[{index}]", call) for index, call in found]
    return extra


def _tool_call(path: str, call: object) -> dict[str, Any]:
    """A call of an earlier turn. Arguments that are no object become {}, as vLLM does: the model has written them."""
    object_(path, call)
    fields = dict(_items(call))
    kind, function = fields.pop("type", None), fields.pop("function", None)
    if kind not in (None, "function"):
        raise InvalidRequestError.of(f"{path}.type", f'must be "function", not {quoted(kind)}')
    object_(f"{path}.function", function)
    members = dict(_items(function))
    name, arguments, call_id = members.pop("name", None), members.pop("arguments", None), fields.pop("id", None)
    text(f"{path}.function.name", name)
    for member, value in (("function.arguments", arguments), ("id", call_id)):
        if value is not None:
            text(f"{path}.{member}", value)
    fields.pop("index", None)  # of the deltas of a stream
    members.pop("parsed_arguments", None)  # of what the openai package's `parse` returns
    _refuse_other_fields(path, fields)
    _refuse_other_fields(f"{path}.function", members)
    written = {"name": name, "arguments": _object_text(str(arguments or ""))}
    return {"type": "function", "function": written, **({} if call_id is None else {"id": call_id})}


def _object_text(arguments: str) -> str:
    try:
        return arguments if isinstance(json.loads(arguments), Mapping) else "{}"
    except (ValueError, RecursionError):
        return "{}"


def _content(path: str, content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequestError.of(path, f"must be a text or a list of parts, not {quoted(content)}")
    if not content:
        raise InvalidRequestError.of(path, "must have at least one part")
    return "".join(
        _text_of_part(f"{path}[{index}]", part) for index, part in enumerate(content)
    )  # newer clients send content as parts


def _text_of_part(path: str, part: object) -> str:
    object_(path, part)
    fields = dict(_items(part))
    kind = fields.pop("type", None)
    if kind != "text":
        problem = "has no type" if kind is None else f"type {quoted(kind)} is not supported here"
        raise InvalidRequestError.of(path, f'{problem}; only parts of type "text" are supported')
    value = fields.pop("text", None)
    text(f"{path}.text", value)
    _refuse_other_fields(path, fields)
    return str(value)


def _refuse_other_fields(path: str, fields: Mapping[str, object]) -> None:
    """Refuse fields other than null and []: clients that send back earlier completions include empty fields."""
    for name, value in fields.items():
        if value is not None and value != []:
            raise InvalidRequestError.of(f"{path}.{truncated(name)}", f"{quoted(value)} is not supported here")


def listed(names: Iterable[str]) -> str:
    """Names as an English list: "a, b and c"."""
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last


# --- names --------------------------------------------------------------------------------------------------------

# Wire field -> keyword of the SDK.
_KEYWORDS = {"preset": "attribution", "target_token_id": "target", "seed": "attribution_seed"}
_INPUTS = ("messages", "prompt", "prompt_ids")
_CONSTRAINT = re.compile(
    r"structured_output|(structured_output\.)?(json_schema|json_object|grammar|regex|choice)(?P<index>(\[\d+\])?)"
)
_PATH = re.compile(r"(?P<name>[a-z_]+)(?P<index>(\[.*\])?)(?P<rest>(\..*)?)", re.DOTALL)


class FieldNames:
    """Maps field names of the SDK and the server to the caller's.

    Args:
        body: the caller's request.
        renamed: SDK keyword -> the caller's name for it, where they differ.
        attribution: path of an attribution keyword, with {} for the keyword.
        gradellm_fields: keywords that are inside the caller's `gradellm` object.
        constraint: path of what constrains the completion; empty where nothing does.
    """

    def __init__(
        self,
        body: Mapping[str, Any],
        renamed: Mapping[str, str] | None = None,
        *,
        attribution: str = "{}",
        gradellm_fields: Iterable[str] = (),
        constraint: str = "",
    ) -> None:
        self._body, self._renamed, self._attribution = body, renamed or {}, attribution
        self._gradellm_fields = frozenset(gradellm_fields)
        self._constraint = constraint

    def error(self, error: InvalidRequestError) -> InvalidRequestError:
        """The error with the caller's names; the same error if it names no field, and is not of the request's size."""
        if not error.violations:
            return named_if_too_large(error, self._body)
        violations = [Violation(self.path(v.field), self._words(v.description)) for v in error.violations]
        renamed = InvalidRequestError("; ".join(f"{v.field}: {v.description}" for v in violations), violations)
        renamed.reason = error.reason
        return renamed

    def path(self, field: str) -> str:
        """A field's path in the caller's request."""
        if field == "input":
            return next((name for name in _INPUTS if self._body.get(name) is not None), _INPUTS[0])
        if self._constraint and (constraint := _CONSTRAINT.fullmatch(field)) is not None:
            return f"{self._constraint}{constraint['index'] or ''}"
        if field.startswith("attribution."):
            name = re.split(r"[.\[]", field)[1]
            return self._attribution.format(_KEYWORDS.get(name, name))
        match = _PATH.fullmatch(re.sub(r"^(input|evaluation|generation)\.", "", field))
        if match is None:
            return field
        name, index, rest = match["name"], match["index"], match["rest"]
        if name == "segments":
            index, rest = self._segment(index), ""
        if name == "stop" and isinstance(self._body.get("stop"), str):
            index = ""
        name = self._renamed.get(name, name)
        rest = re.sub(r"^\.(name|arguments)$", r".function.\1", rest) if ".tool_calls[" in index else rest
        return f"{'gradellm.' if name in self._gradellm_fields else ''}{name}{index}{rest}"

    def _segment(self, index: str) -> str:
        """A segment's path by its name, .kite, from the server's [0] and the SDK's ['kite']."""
        inner = index[1:-1]
        fields = self._body.get("gradellm") if "segments" in self._gradellm_fields else self._body
        segments = fields.get("segments") if isinstance(fields, Mapping) else None
        names = list(segments) if isinstance(segments, Mapping) else []
        if inner.isdecimal() and int(inner) < len(names):
            return f".{truncated(names[int(inner)])}"
        return f".{inner[1:-1]}" if inner[:1] in ("'", '"') else index

    def _words(self, description: str) -> str:
        """A description with SDK keywords replaced by the caller's names."""
        for keyword, name in self._renamed.items():
            description = re.sub(rf"\b{keyword}\b", name, description)
        return description
