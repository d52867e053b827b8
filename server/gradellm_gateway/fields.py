"""What the fields of a chat request may hold, and what each is called on its way to the server.

Every known field has a check here, strict as JSON's own types are: true is no number, "false" no boolean. Refusals
name the field as the caller wrote it, also those of the SDK and the server, which know it by other names (`Names`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gradellm import InvalidRequestError, Violation

Check = Callable[[str, object], None]
"""Raises InvalidRequestError where a value is not what a field holds; the first argument is the field's path."""

_SHOWN = 40  # characters of a text that an error quotes
ROLES = ("system", "developer", "user", "assistant")


def shown(value: object) -> str:
    """A value of JSON as an error names it: whole where it is short, else by its kind."""
    if isinstance(value, str):
        return json.dumps(value) if len(value) <= _SHOWN else f"{json.dumps(value[:_SHOWN])}..."
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "[]"
    if isinstance(value, Mapping):
        return "an object" if value else "{}"
    if isinstance(value, int) and value.bit_length() > 256:
        return "an integer of many digits"
    return json.dumps(value)


def name_of(name: str) -> str:
    """A field's name as an error says it: callers choose it, and may choose a long one."""
    return name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."


def _must(kind: str, holds: Callable[[object], bool]) -> Check:
    def check(path: str, value: object) -> None:
        if not holds(value):
            raise InvalidRequestError.of(path, f"must be {kind}, not {shown(value)}")

    return check


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


boolean = _must("true or false", lambda value: isinstance(value, bool))
integer = _must("an integer", lambda value: isinstance(value, int) and not isinstance(value, bool))
number = _must("a number", _is_number)
text = _must("a text", lambda value: isinstance(value, str))
object_ = _must("an object", lambda value: isinstance(value, Mapping))
list_ = _must("a list", lambda value: isinstance(value, list))


def texts(path: str, value: object) -> None:
    """A text, or a list of texts."""
    if isinstance(value, list):
        for index, one in enumerate(value):
            text(f"{path}[{index}]", one)
    elif not isinstance(value, str):
        raise InvalidRequestError.of(path, f"must be a text or a list of texts, not {shown(value)}")


def _texts_by_name(path: str, value: object) -> None:
    object_(path, value)
    for name, one in _items(value):
        text(f"{path}.{name_of(name)}", one)


def _stream_options(path: str, value: object) -> None:
    object_(path, value)
    for name, one in _items(value):
        if name not in ("include_usage", "include_obfuscation"):
            raise InvalidRequestError.of(f"{path}.{name_of(name)}", "is not known; there is include_usage")
        if one is not None:
            boolean(f"{path}.{name}", one)


def _items(value: object) -> Iterable[tuple[str, object]]:
    return value.items() if isinstance(value, Mapping) else ()


def only(check: Check, *values: object) -> Check:
    """A field that is taken where it asks for nothing: its type, and then one of these values."""

    def checked(path: str, value: object) -> None:
        check(path, value)
        if value not in values:
            raise InvalidRequestError.of(path, f"{shown(value)} is not supported here; leave it out")

    return checked


def _one(path: str, value: object) -> None:
    integer(path, value)
    if value != 1:
        raise InvalidRequestError.of(path, "only one completion is made of a prompt: leave n out, or 1")


FIELDS: dict[str, Check] = {
    "model": text,
    "messages": list_,
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
    "n": _one,
    "gradellm": object_,
    # What changes no answer.
    "user": text,
    "metadata": _texts_by_name,
    "store": boolean,
    "safety_identifier": text,
    "prompt_cache_key": text,
    "prompt_cache_retention": text,
    "service_tier": text,
    "parallel_tool_calls": boolean,
    # What is not done here, where it asks for nothing.
    "frequency_penalty": only(number, 0),
    "presence_penalty": only(number, 0),
    "logit_bias": only(object_, {}),
    "tools": only(list_, []),
    "tool_choice": only(text, "none", "auto"),
    "functions": only(list_, []),
    "function_call": only(text, "none", "auto"),
    "response_format": only(object_, {"type": "text"}),
    "reasoning_effort": only(text, "none"),
    "modalities": only(list_, ["text"]),
    "verbosity": only(text, "medium"),
}
"""By name. null is as good as absent for each of them but `messages`."""


def check_fields(body: Mapping[str, Any]) -> None:
    """Raise InvalidRequestError for the first field that is not known, or holds something else than it may."""
    for name, value in body.items():
        if value is None:
            continue
        check = FIELDS.get(name)
        if check is None:
            raise InvalidRequestError.of(name_of(name), f"{shown(value)} is not supported here; leave it out")
        check(name, value)


# --- messages -----------------------------------------------------------------------------------------------------


def messages(given: object) -> list[dict[str, str]]:
    """Return messages as the SDK takes them. What they hold beside role and content has no place in a prompt."""
    list_("messages", given)
    found = [_message(f"messages[{index}]", one) for index, one in enumerate(given if isinstance(given, list) else [])]
    if not found:
        raise InvalidRequestError.of("messages", "must be a list of messages, one at least")
    return found


def _message(path: str, message: object) -> dict[str, str]:
    object_(path, message)
    of = dict(_items(message))
    for name in ("role", "content"):
        if name not in of:
            raise InvalidRequestError.of(f"{path}.{name}", "is missing")
    role = of.pop("role")
    text(f"{path}.role", role)
    if role not in ROLES:
        raise InvalidRequestError.of(f"{path}.role", f"{shown(role)} is not supported here; there are {listed(ROLES)}")
    content = _content(f"{path}.content", of.pop("content"))
    _refuse_others(path, of)
    return {"role": "system" if role == "developer" else str(role), "content": content}


def _content(path: str, content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequestError.of(path, f"must be a text or a list of parts, not {shown(content)}")
    if not content:
        raise InvalidRequestError.of(path, "must have one part at least")
    return "".join(_part(f"{path}[{index}]", part) for index, part in enumerate(content))  # as newer clients send it


def _part(path: str, part: object) -> str:
    object_(path, part)
    of = dict(_items(part))
    kind = of.pop("type", None)
    if kind != "text":
        said = "has no type" if kind is None else f"type {shown(kind)} is not supported here"
        raise InvalidRequestError.of(path, f'{said}; the model reads parts of type "text" alone')
    value = of.pop("text", None)
    text(f"{path}.text", value)
    _refuse_others(path, of)
    return str(value)


def _refuse_others(path: str, of: Mapping[str, object]) -> None:
    """What is null or empty says nothing; clients send it that hand earlier answers back."""
    for name, value in of.items():
        if value is not None and value != []:
            raise InvalidRequestError.of(f"{path}.{name_of(name)}", f"{shown(value)} is not supported here")


def listed(names: Iterable[str]) -> str:
    """Names as an error lists them."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


# --- names --------------------------------------------------------------------------------------------------------

# Of the wire, and as the SDK's keywords have them.
_KEYWORDS = {"preset": "attribution", "target_token_id": "target", "seed": "attribution_seed"}
_INPUTS = ("messages", "prompt", "prompt_ids")
_PATH = re.compile(r"(?P<name>[a-z_]+)(?P<index>(\[.*\])?)(?P<rest>(\..*)?)", re.DOTALL)


class Names:
    """From the names that the SDK and the server give to what was asked to the caller's own.

    Args:
        body: what the caller sent.
        renamed: fields by the SDK's keyword, whose name at the caller is another.
        attribution: the path of a keyword of attribution, whose name is put in for {}.
        own: which keywords are in the caller's object `gradellm`.
    """

    def __init__(
        self,
        body: Mapping[str, Any],
        renamed: Mapping[str, str] | None = None,
        *,
        attribution: str = "{}",
        own: Iterable[str] = (),
    ) -> None:
        self._body, self._renamed, self._attribution, self._own = body, renamed or {}, attribution, frozenset(own)

    def error(self, error: InvalidRequestError) -> InvalidRequestError:
        """Return an error with the caller's names; itself where it names no field."""
        if not error.violations:
            return error
        violations = [Violation(self.path(v.field), self._words(v.description)) for v in error.violations]
        found = InvalidRequestError("; ".join(f"{v.field}: {v.description}" for v in violations), violations)
        found.reason = error.reason
        return found

    def path(self, field: str) -> str:
        """Return a field's path at the caller."""
        if field == "input":
            return next((name for name in _INPUTS if self._body.get(name) is not None), _INPUTS[0])
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
        return f"{'gradellm.' if name in self._own else ''}{name}{index}{rest}"

    def _segment(self, index: str) -> str:
        """A segment by its name, where the server counts and the SDK quotes: .kite of [0] and of ['kite']."""
        inner = index[1:-1]
        given = self._body.get("gradellm") if "segments" in self._own else self._body
        segments = given.get("segments") if isinstance(given, Mapping) else None
        names = list(segments) if isinstance(segments, Mapping) else []
        if inner.isdecimal() and int(inner) < len(names):
            return f".{name_of(names[int(inner)])}"
        return f".{inner[1:-1]}" if inner[:1] in ("'", '"') else index

    def _words(self, description: str) -> str:
        """Names of ours that a description mentions, as the caller knows them."""
        for ours, theirs in self._renamed.items():
            description = re.sub(rf"\b{ours}\b", theirs, description)
        return description
