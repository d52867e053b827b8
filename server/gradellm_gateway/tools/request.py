"""The tools of a chat request: definitions, which of them may be called, and how their calls are returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gradellm import InvalidRequestError
from gradellm_gateway.fields import boolean, listed, object_, quoted, text

__all__ = ["ToolRequest"]

CHOICES = ("none", "auto", "required")
MAX_TOOLS = 512


@dataclass(frozen=True)
class ToolRequest:
    """The tools of a chat.

    Attributes:
        definitions: OpenAI's function tools.
        choice: whether the model may or must call one.
        name: of the tool that it must call.
        is_parallel: whether several calls are returned.
        includes_reasoning: whether reasoning is returned.
    """

    definitions: Sequence[Mapping[str, Any]] = ()
    choice: Literal["none", "auto", "required", "named"] = "none"
    name: str = ""
    is_parallel: bool = True
    includes_reasoning: bool = True

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> ToolRequest:
        """Read a request whose fields have the right types. Raises InvalidRequestError, which names the field."""
        definitions = tuple(body.get("tools") or ())
        if len(definitions) > MAX_TOOLS:
            raise InvalidRequestError.of("tools", f"{len(definitions):,} tools; the limit is {MAX_TOOLS}: send fewer")
        names = [_name(f"tools[{index}]", tool) for index, tool in enumerate(definitions)]
        choice = body.get("tool_choice")
        if choice is None:
            choice = "auto" if definitions else "none"
        name = "" if isinstance(choice, str) else _named(choice, names)
        if choice not in ("none", "auto") and not definitions:
            raise InvalidRequestError.of("tool_choice", f"{quoted(choice)} needs tools")
        return cls(
            definitions,
            choice if isinstance(choice, str) else "named",  # type: ignore[arg-type]  # checked by the table of fields
            name,
            body.get("parallel_tool_calls") is not False,
            body.get("include_reasoning") is not False,
        )

    @property
    def callable(self) -> Sequence[Mapping[str, Any]]:
        """The tools that may be called."""
        return [tool for tool in self.definitions if self.name in ("", tool["function"]["name"])]


def _name(path: str, tool: object) -> str:
    """Return a tool's name, with what the tool is checked as far as the model does not matter."""
    object_(path, tool)
    fields = tool if isinstance(tool, Mapping) else {}
    if fields.get("type") != "function":
        raise InvalidRequestError.of(f"{path}.type", f'must be "function", not {quoted(fields.get("type"))}')
    object_(f"{path}.function", fields.get("function"))
    function = fields["function"]
    text(f"{path}.function.name", function.get("name"))
    for name, check in (("description", text), ("parameters", object_), ("strict", boolean)):
        if function.get(name) is not None:
            check(f"{path}.function.{name}", function[name])
    return str(function["name"])


def _named(choice: object, names: Sequence[str]) -> str:
    """Return the name of the tool that must be called."""
    path = "tool_choice"
    fields = choice if isinstance(choice, Mapping) else {}
    if fields.get("type") != "function":
        raise InvalidRequestError.of(f"{path}.type", f'must be "function", not {quoted(fields.get("type"))}')
    object_(f"{path}.function", fields.get("function"))
    name = fields["function"].get("name")
    text(f"{path}.function.name", name)
    if name not in names:
        there = listed(names) if 0 < len(names) <= 20 else f"{len(names)} others"
        raise InvalidRequestError.of(f"{path}.function.name", f"{quoted(name)} is none of the tools; there are {there}")
    return str(name)
