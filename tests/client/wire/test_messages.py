"""Messages and tools, from keywords to the wire."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gradellm import InvalidRequestError
from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire.messages import built_messages, tools_json
from gradellm.wire.requests import tokenize_request

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def test_a_conversation_with_tools() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "ü"}}]
    messages: Any = [
        ("user", "What?"),
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "Hm."},
        {"role": "tool", "content": "noon", "tool_call_id": "c1", "name": "f"},
    ]
    request = tokenize_request(None, {"messages": messages, "tools": tools})
    assert json.loads(request.input.tools) == tools
    assert list(request.input.messages) == [
        pb.Message(role="user", content="What?"),
        pb.Message(
            role="assistant", tool_calls=[pb.ToolCall(id="c1", name="f", arguments='{"a": 1}')], reasoning="Hm."
        ),
        pb.Message(role="tool", content="noon", tool_call_id="c1", name="f"),
    ]
    assert tokenize_request(None, {"messages": messages, "tools": []}).input.tools == ""


def test_arguments_are_text_or_a_mapping() -> None:
    def arguments(given: object) -> str:
        call = {"function": {"name": "f", "arguments": given}}
        return built_messages([{"role": "assistant", "tool_calls": [call]}])[0].tool_calls[0].arguments

    assert json.loads(arguments({"a": "ü"})) == {"a": "ü"}
    assert arguments("{") == "{"  # what it is, the server checks
    assert arguments("") == arguments(None) == ""


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "assistant", "content": None}, "messages[0].content"),
        ({"role": "assistant", "tool_calls": []}, "messages[0]"),
        ({"role": "assistant", "content": "", "tool_calls": 3}, "tool_calls"),
        ({"role": "assistant", "content": "", "tool_calls": ["f"]}, "messages[0].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "x": 1}}]}, "messages[0].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "messages[0].tool_calls[0].function.name"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 3}}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": {1}}}}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"role": "tool", "content": "", "tool_call_id": 3}, "messages[0].tool_call_id"),
        ({"role": "assistant", "content": "", "reasoning": 3}, "messages[0].reasoning_content"),
    ],
)
def test_wrong_messages_are_named(message: Any, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        built_messages([message])
    assert caught.value.violations[0].field == field


@pytest.mark.parametrize("tools", ["[]", {"a": 1}, 3, [{1}], [float("nan")]])
def test_tools_are_json(tools: Any) -> None:
    with pytest.raises(InvalidRequestError, match="tools"):
        tools_json("tools", tools)
