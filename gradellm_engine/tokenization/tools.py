"""Tools of a chat: the caller's definitions as JSON, and the calls in the messages of an assistant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.utils.bounded_json import read_json

MAX_TOOLS = 512  # definitions of a request, and calls of a message
MAX_NAME = 128  # characters

TOOL_SEGMENT = "tool:"  # begins the name of the segment of a tool's definition
_LOOKS = {  # of templates, by the name of vLLM's parser; the first that has one of the texts
    "qwen3_coder": ("<function=",),
    "hermes": ("<tool_call>",),
    "mistral": ("[TOOL_CALLS]",),
    "llama3_json": ("<|python_tag|>", '"parameters": dictionary of argument', '"parameters": '),
}
_NAME = re.compile(rf"[A-Za-z0-9_./-]{{1,{MAX_NAME}}}")


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool in a message of an assistant.

    Attributes:
        name: the tool's.
        arguments: a JSON object.
        id: what the tool's message refers to; templates of some models write it.
    """

    name: str
    arguments: str = "{}"
    id: str = ""


def read_tools(field: str, text: str) -> list[dict[str, Any]]:
    """The definitions of a JSON list of function tools: {"type": "function", "function": {"name": ..., ...}}.

    Raises:
        InvalidRequestError: naming the tool, for text that is not such a list, and for names that are not unique.
    """
    tools = read_json(field, text)
    if not isinstance(tools, list) or not 0 < len(tools) <= MAX_TOOLS:
        raise InvalidRequestError(field, f"must be a JSON list of 1 to {MAX_TOOLS} tools, not {_kind(tools)}")
    names: set[str] = set()
    for index, tool in enumerate(tools):
        where = f"{field}[{index}]"
        if not isinstance(tool, Mapping) or not isinstance(tool.get("function"), Mapping):
            raise InvalidRequestError(where, 'must be an object: {"type": "function", "function": {"name": ...}}')
        if tool.get("type") != "function":
            raise InvalidRequestError(f"{where}.type", "must be function: there are no other tools")
        name = tool["function"].get("name")
        check_name(f"{where}.function.name", name)
        if name in names:
            raise InvalidRequestError(f"{where}.function.name", f"{name!r} is the name of an earlier tool, too")
        names.add(name)
    return tools


def read_arguments(field: str, text: str) -> dict[str, Any]:
    """The arguments of a call, from a JSON object; none for empty text.

    Raises:
        InvalidRequestError: naming the field.
    """
    arguments = read_json(field, text) if text.strip() else {}
    if not isinstance(arguments, dict):
        raise InvalidRequestError(field, f"must be a JSON object, not {_kind(arguments)}")
    return arguments


def check_name(field: str, name: object) -> None:
    """Refuse a tool's name that is no text of letters, digits and _ . / -, or is too long."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequestError(
            field, f"must be 1 to {MAX_NAME} ASCII letters, digits, underscores, hyphens, dots or slashes"
        )


def call_parser(template: str) -> str:
    """The form in which a model writes calls, by the look of its chat template; empty where it is none of ours."""
    return next((name for name, looks in _LOOKS.items() if any(look in template for look in looks)), "")


def segment_of(tool: Mapping[str, Any]) -> str:
    """The name of the segment of a tool's definition."""
    return f"{TOOL_SEGMENT}{tool['function']['name']}"


def _kind(value: object) -> str:
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    return {dict: "an object", str: "a text", type(None): "null"}.get(type(value), "a number or a boolean")
