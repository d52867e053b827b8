"""Calls as XML: <tool_call><function=name><parameter=key>value</parameter></function></tool_call>, of Qwen 3 Coder."""

from __future__ import annotations

import json
from typing import Any, ClassVar, NoReturn

from gradellm.parsers.base import CallParser, MarkerMatch
from gradellm.parsers.deltas import ArgumentSpan

__all__ = ["Qwen3CoderParser"]

_CALL, _CALL_END = "<tool_call>", "</tool_call>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_MAX_NAME = 256  # characters


class Qwen3CoderParser(CallParser):
    """Reads calls in XML, and makes JSON of their parameters.

    A parameter that the tool's definition gives another type than string is JSON if its text is; else a text, without
    one line break at each end. Texts are sent while they are written.
    """

    markers: ClassVar[tuple[str, ...]] = (_CALL, _FUNCTION)

    def on_marker(self, marker: str) -> None:
        """Read the function's tag."""
        self._word: list[str] = []  # a name that is being read
        self._has_tag = marker == _CALL
        self._tag = MarkerMatch(_FUNCTION)
        self.state = self._read_name if marker == _FUNCTION else self._read_function

    def _read_function(self, character: str) -> None:
        """Read white space and the function's tag after <tool_call>."""
        self.hold(character)
        if character.isspace() and not self._tag.held:
            return
        free, marker = self._tag.push(character)
        if free:
            self.refuse_before()
        elif marker:
            self.state = self._read_name

    def _read_name(self, character: str) -> None:
        self.hold(character)
        if character != ">":
            self._word.append(character)
            if character in "<\n" or len(self._word) > _MAX_NAME:
                self.refuse_before()
            return
        name = "".join(self._word)
        if not name.strip():
            self.refuse()
            return
        self.begin_call(name.strip(), (self.position - len(name), self.position))
        self._types = self._types_of(name.strip())
        self._tag = MarkerMatch(_PARAMETER, _FUNCTION_END, _CALL_END)
        self.state = self._read_between

    def _types_of(self, name: str) -> dict[str, Any]:
        """Return the schemas of a tool's parameters."""
        for tool in self.tools:
            function = tool.get("function") or {}
            if function.get("name") == name:
                properties = (function.get("parameters") or {}).get("properties")
                return dict(properties) if isinstance(properties, dict) else {}
        return {}

    def _read_between(self, character: str) -> None:
        """Read white space and tags between parameters."""
        self.extend_call()
        if character.isspace() and not self._tag.held:
            return
        free, marker = self._tag.push(character)
        if free:
            self._break(free + self._tag.held)
        elif marker == _PARAMETER:
            self._word = []
            self.state = self._read_key
        elif marker:
            self._end_call(marker)

    def _read_key(self, character: str) -> None:
        self.extend_call()
        if character == ">":
            self._begin_value("".join(self._word).strip())
        elif character in "<\n" or len(self._word) > _MAX_NAME:
            self._break(character)
        else:
            self._word.append(character)

    # --- a value ------------------------------------------------------------------------------------------------------

    def _begin_value(self, key: str) -> None:
        draft = self.drafts[-1]
        self._key = key
        self._value_start = self.position + 1
        self._is_text = _is_text(self._types.get(key))
        self._value: list[str] = []  # that is not sent yet: a value that may be JSON, or a line break
        self._is_first = True
        self.add_arguments(f"{', ' if draft.arguments else '{'}{json.dumps(key, ensure_ascii=False)}: ")
        if self._is_text:
            self.add_arguments('"')
        if draft.arguments_span is None:
            draft.arguments_span = (self.position - len("".join(self._word)) - len(_PARAMETER), self.position + 1)
        self._tag = MarkerMatch(_PARAMETER_END, _PARAMETER, _FUNCTION_END)
        self.state = self._read_value

    def _read_value(self, character: str) -> None:
        self.extend_call()
        free, marker = self._tag.push(character)
        for each in free:
            self._add_value(each)
        if marker:
            self._end_value(self.position + 1 - len(marker))
            if marker == _PARAMETER:
                self._word = []
                self.state = self._read_key
            elif marker == _FUNCTION_END:
                self._end_call(marker)
            else:
                self._tag = MarkerMatch(_PARAMETER, _FUNCTION_END, _CALL_END)
                self.state = self._read_between

    def _add_value(self, character: str) -> None:
        if not self._is_text:
            self._value.append(character)
            return
        is_break = character == "\n"
        if not (is_break and self._is_first):
            if self._value:
                self.add_arguments("\\n")
                self._value.clear()
            if is_break:
                self._value.append(character)
            else:
                self.add_arguments(json.dumps(character, ensure_ascii=False)[1:-1])
        self._is_first = False

    def _end_value(self, end: int) -> None:
        text = "".join(self._value)
        if self._is_text:
            self.add_arguments('"')
        else:
            self.add_arguments(_as_json(text.removeprefix("\n").removesuffix("\n")))
        draft = self.drafts[-1]
        draft.values.append(ArgumentSpan(self._key, self._value_start, end))
        draft.arguments_span = ((draft.arguments_span or (end, end))[0], end)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _end_call(self, marker: str) -> None:
        draft = self.drafts[-1]
        self.add_arguments("}" if draft.arguments else "{}")
        draft.is_closed = True
        self._tag = MarkerMatch(_CALL_END)
        self.state = self._read_closing if marker == _FUNCTION_END else self.read_content

    def _read_closing(self, character: str) -> None:
        """Read white space and </tool_call> after a function."""
        if character.isspace() and not self._tag.held:
            return
        free, marker = self._tag.push(character)
        if marker:
            self.extend_call()
            self.state = self.read_content
        elif free:
            self.reread(free + self._tag.held)

    def _break(self, text: str) -> None:
        """Go on after text that is neither a parameter nor the end."""
        self._tag = MarkerMatch(_FUNCTION_END, _CALL_END)
        self.state = self._read_broken
        for character in text:
            self._read_broken(character)

    def _read_broken(self, character: str) -> None:
        """Read what is no parameter up to the end of the call."""
        self.extend_call()
        _, marker = self._tag.push(character)
        if marker:
            self.state = self.read_content


def _is_text(schema: object) -> bool:
    """Whether a parameter is a text: by its type, or as it has none."""
    kind = schema.get("type") if isinstance(schema, dict) else None
    if kind is None and isinstance(schema, dict):
        return not ({"anyOf", "oneOf", "allOf", "enum", "const", "$ref", "properties", "items"} & schema.keys())
    return kind in (None, "string")


def _as_json(text: str) -> str:
    """Return a text that is JSON as it is, and else as a JSON string."""
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return text.strip()


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)
