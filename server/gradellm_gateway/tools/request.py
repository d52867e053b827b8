"""The tools of a request: definitions, which of them may be called, and how their calls are returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gradellm import InvalidRequestError
from gradellm_gateway.errors import limit_count
from gradellm_gateway.fields import boolean, listed, object_, quoted, text, truncated

__all__ = ["ToolRequest"]

CHOICES = ("none", "auto", "required")
MAX_TOOLS = 512
_FUNCTION_FIELDS = {"name", "description", "parameters", "strict"}


@dataclass(frozen=True)
class ToolRequest:
    """The tools of a request.

    Attributes:
        definitions: OpenAI's function tools, in the form of chats.
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
    def of(cls, body: Mapping[str, Any], *, is_flat: bool = False) -> ToolRequest:
        """Read a request whose fields have the right types. Raises InvalidRequestError, which names the field.

        `is_flat`: a function's fields stand beside `type`, as in the Responses API, not in `function`.
        """
        limit_count("tools", body.get("tools"), MAX_TOOLS, "tools")
        tools = tuple(body.get("tools") or ())
        definitions = tuple(_definition(f"tools[{index}]", tool, is_flat) for index, tool in enumerate(tools))
        names = [str(tool["function"]["name"]) for tool in definitions]
        choice = body.get("tool_choice")
        if choice is None:
            choice = "auto" if definitions else "none"
        name = "" if isinstance(choice, str) else _named(choice, names, is_flat)
        if choice not in ("none", "auto") and not definitions:
            raise InvalidRequestError.of("tool_choice", f"{quoted(choice)} needs tools")
        return cls(
            definitions,
            choice if isinstance(choice, str) else "named",  # type: ignore[arg-type]  # checked by the table of fields
            name,
            body.get("parallel_tool_calls") is not False,
            body.get("include_reasoning") is not False,
        )

    def check_constraint(self, path: str) -> None:
        """Raise InvalidRequestError where a call is required beside the constraint at `path`, if there is one."""
        if path and self.choice in ("required", "named"):
            raise InvalidRequestError.of("tool_choice", f"a required call has a form of its own: leave {path} out")

    @property
    def callable(self) -> Sequence[Mapping[str, Any]]:
        """The tools that may be called."""
        return [tool for tool in self.definitions if self.name in ("", tool["function"]["name"])]


def _definition(path: str, tool: object, is_flat: bool) -> Mapping[str, Any]:
    """Return a tool in the form of chats, checked as far as the model does not matter."""
    inner, function = _function(path, tool, is_flat)
    text(f"{inner}.name", function.get("name"))
    for name, check in (("description", text), ("parameters", object_), ("strict", boolean)):
        if function.get(name) is not None:
            check(f"{inner}.{name}", function[name])
    if not is_flat:
        return tool  # type: ignore[return-value]  # an object, which _function has checked
    given = {name: value for name, value in function.items() if value is not None}
    if unknown := given.keys() - _FUNCTION_FIELDS:
        name = min(unknown)
        raise InvalidRequestError.of(f"{path}.{truncated(name)}", f"{quoted(given[name])} is not supported here")
    return {"type": "function", "function": given}


def _function(path: str, value: object, is_flat: bool) -> tuple[str, Mapping[str, Any]]:
    """Return the path and the fields of a function, from a tool or a choice of one."""
    object_(path, value)
    fields = value if isinstance(value, Mapping) else {}
    if fields.get("type") != "function":
        raise InvalidRequestError.of(f"{path}.type", f'must be "function", not {quoted(fields.get("type"))}')
    if is_flat:
        return path, {name: each for name, each in fields.items() if name != "type"}
    object_(f"{path}.function", fields.get("function"))
    return f"{path}.function", fields["function"]


def _named(choice: object, names: Sequence[str], is_flat: bool) -> str:
    """Return the name of the tool that must be called."""
    path, function = _function("tool_choice", choice, is_flat)
    name = function.get("name")
    text(f"{path}.name", name)
    if name not in names:
        there = listed(names) if 0 < len(names) <= 20 else f"{len(names)} others"
        raise InvalidRequestError.of(f"{path}.name", f"{quoted(name)} is none of the tools; there are {there}")
    return str(name)
