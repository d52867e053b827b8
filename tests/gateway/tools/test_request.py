"""The tools of a request, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from gradellm import InvalidRequestError, Violation
from gradellm_gateway.chat import ChatRequest
from gradellm_gateway.tools.request import ToolRequest

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}, "strict": True, "description": None}}
OTHER = {"type": "function", "function": {"name": "g"}}


def request(**fields: Any) -> ToolRequest:
    return ChatRequest.from_json({"messages": [{"role": "user", "content": "a"}], **fields}).tools


def test_choices() -> None:
    assert request() == ToolRequest()
    assert request(tools=[], tool_choice="auto").choice == "auto"
    assert request(tools=[TOOL]).choice == "auto"
    assert request(tools=[TOOL], tool_choice="none").choice == "none"
    assert request(tools=[TOOL], tool_choice="required", parallel_tool_calls=False).is_parallel is False
    named = request(tools=[TOOL, OTHER], tool_choice={"type": "function", "function": {"name": "g"}})
    assert (named.choice, named.name, list(named.callable)) == ("named", "g", [OTHER])
    assert list(request(tools=[TOOL, OTHER]).callable) == [TOOL, OTHER]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [1]}, "tools[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": 1}}]}, "tools[0].function.strict"),
        ({"tools": [TOOL] * 10_000}, "tools"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "x"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice.function.name",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice.function.name"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        request(**fields)
    assert caught.value.violations[0].field == param


def test_flat_tools_are_those_of_chats() -> None:
    flat = {"type": "function", "name": "f", "parameters": {}, "strict": True, "description": None}
    body = {"tools": [flat, {"type": "function", "name": "g"}], "tool_choice": {"type": "function", "name": "g"}}
    found = ToolRequest.of(body, is_flat=True)
    inner = {"name": "f", "parameters": {}, "strict": True}
    assert (found.choice, found.name) == ("named", "g")
    assert list(found.definitions) == [{"type": "function", "function": inner}, OTHER]
    for field, value, path in (("colour", 1, "tools[0].colour"), ("parameters", [], "tools[0].parameters")):
        with pytest.raises(InvalidRequestError) as caught:
            ToolRequest.of({"tools": [flat | {field: value}]}, is_flat=True)
        assert caught.value.violations[0].field == path


def test_a_schema_that_no_grammar_has_is_one_of_a_tool() -> None:
    chat = ChatRequest.from_json({"messages": [{"role": "user", "content": "a"}], "tools": [TOOL]})
    error = InvalidRequestError("x", [Violation("structured_output.grammar", "no")])
    assert chat.names.error(error).violations[0].field == "tools"
