"""The items of a request as messages of a chat, and where each message comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gradellm import InvalidRequestError
from gradellm_gateway.fields import list_, object_, quoted, text, truncated

__all__ = ["Conversation"]

_TEXT_PARTS = ("input_text", "output_text", "text")
# Of items and parts that clients send back from earlier responses.
_LEFT_OUT = {"type", "id", "status", "phase"}
_LEFT_OUT_OF_PARTS = {"annotations", "logprobs", "parsed"}
_LEFT_OUT_OF_CALLS = {*_LEFT_OUT, "parsed_arguments"}
_KINDS = '"message", "function_call", "function_call_output" and "reasoning"'
# Fields of messages -> fields of items.
_CALL_NAMES = {".function.name": ".name", ".function.arguments": ".arguments", ".id": ".call_id"}
_OUTPUT_NAMES = {".content": ".output", ".tool_call_id": ".call_id"}


@dataclass
class _Place:
    """Where a message comes from: the path of its item, the names of its fields there, the paths of its calls."""

    path: str
    names: Mapping[str, str] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)


class Conversation:
    """The messages of a request of the Responses API.

    Calls belong to the message of the assistant before them, as in chats. Reasoning of earlier responses is left out.

    Attributes:
        messages: as of a chat; `gradellm_gateway.fields.messages` checks what is in them.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        """Read the items. Raises InvalidRequestError, which names the item."""
        self.messages: list[dict[str, Any]] = []
        self._places: list[_Place] = []
        if body.get("instructions") is not None:
            self._add({"role": "system", "content": body["instructions"]}, _Place("instructions", {".content": ""}))
        items = body["input"]
        if isinstance(items, str):
            self._add({"role": "user", "content": items}, _Place("input", {".content": ""}))
            return
        if not items:
            raise InvalidRequestError.of("input", "must have at least one item")
        for index, item in enumerate(items):
            self._add_item(f"input[{index}]", item)

    def path(self, name: str) -> str:
        """Return the caller's path of a message's field, such as messages[2].content; any other name as it is."""
        match = re.fullmatch(r"messages(?:\[(\d+)\])?(.*)", name, re.DOTALL)
        if match is None:
            return name
        if match[1] is None or int(match[1]) >= len(self._places):
            return "input"
        place, rest = self._places[int(match[1])], match[2]
        call = re.fullmatch(r"\.tool_calls(?:\[(\d+)\])?(.*)", rest, re.DOTALL)
        if call is not None and place.calls:
            return place.calls[int(call[1] or 0)] + _CALL_NAMES.get(call[2], call[2])
        return place.path + place.names.get(rest, rest)

    def _add(self, message: dict[str, Any], place: _Place) -> None:
        self.messages.append(message)
        self._places.append(place)

    def _add_item(self, path: str, item: object) -> None:
        object_(path, item)
        fields = dict(item) if isinstance(item, Mapping) else {}
        match fields.get("type") or "message":
            case "message":
                self._add_message(path, _message(path, fields))
            case "function_call":
                self._add_call(path, fields)
            case "function_call_output":
                answered, output = (
                    _text_field(path, fields, "call_id"),
                    _content(f"{path}.output", fields.get("output")),
                )
                _refuse_others(path, fields, {"call_id", "output", *_LEFT_OUT})
                message = {"role": "tool", "tool_call_id": answered, "content": output}
                self._add(message, _Place(path, _OUTPUT_NAMES))
            case "reasoning":
                pass
            case kind:
                raise InvalidRequestError.of(
                    f"{path}.type", f"{quoted(kind)} is not supported here; there are {_KINDS}"
                )

    def _add_message(self, path: str, message: dict[str, Any]) -> None:
        """Add a message; the text of an assistant's turn whose calls came first belongs to them."""
        last = self.messages[-1] if self.messages else {}
        if message.get("role") == last.get("role") == "assistant" and last["content"] is None:
            last |= message
            self._places[-1].path = path
        else:
            self._add(message, _Place(path))

    def _add_call(self, path: str, fields: Mapping[str, Any]) -> None:
        """Add a call to the assistant's message before it, or to a new one."""
        name, arguments = (_text_field(path, fields, each) for each in ("name", "arguments"))
        call = {"id": _text_field(path, fields, "call_id"), "function": {"name": name, "arguments": arguments}}
        _refuse_others(path, fields, {"call_id", "name", "arguments", *_LEFT_OUT_OF_CALLS})
        if not self.messages or self.messages[-1].get("role") != "assistant":
            self._add({"role": "assistant", "content": None}, _Place(path))
        self.messages[-1].setdefault("tool_calls", []).append({"type": "function", **call})
        self._places[-1].calls.append(path)


def _message(path: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    if fields.get("tool_calls"):
        raise InvalidRequestError.of(
            f"{path}.tool_calls", 'is not supported here: send an item of the type "function_call" for each'
        )
    if fields.get("name") is not None:
        raise InvalidRequestError.of(f"{path}.name", "is not supported here: only messages of chats have one")
    made = {truncated(name): value for name, value in fields.items() if name not in {*_LEFT_OUT, "tool_calls"}}
    if isinstance(fields.get("content"), list):
        made["content"] = _content(f"{path}.content", fields["content"])
    return made


def _content(path: str, content: object) -> object:
    """Return a content in the form of chats, a text or a list of parts."""
    if isinstance(content, str):
        return content
    list_(path, content)
    return [_part(f"{path}[{index}]", part) for index, part in enumerate(content if isinstance(content, list) else ())]


def _part(path: str, part: object) -> object:
    if not isinstance(part, Mapping) or part.get("type") not in _TEXT_PARTS:
        kind = quoted(part.get("type")) if isinstance(part, Mapping) else quoted(part)
        raise InvalidRequestError.of(path, f"{kind} is not supported here; parts must be input_text or output_text")
    return {**{name: value for name, value in part.items() if name not in _LEFT_OUT_OF_PARTS}, "type": "text"}


def _text_field(path: str, fields: Mapping[str, Any], name: str) -> str:
    if fields.get(name) is None:
        raise InvalidRequestError.of(f"{path}.{name}", "is missing")
    text(f"{path}.{name}", fields[name])
    return str(fields[name])


def _refuse_others(path: str, fields: Mapping[str, Any], known: set[str]) -> None:
    for name, value in fields.items():
        if name not in known and value is not None:
            raise InvalidRequestError.of(f"{path}.{truncated(name)}", f"{quoted(value)} is not supported here")
