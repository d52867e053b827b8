"""Items as messages of a chat."""

from __future__ import annotations

from typing import Any

import pytest

from gradellm import InvalidRequestError
from gradellm_gateway.responses.conversation import Conversation

USER = {"role": "user", "content": "How is Bonn?"}


def call(number: int) -> dict[str, Any]:
    own = {"call_id": f"c{number}", "name": "weather", "arguments": f'{{"n": {number}}}'}
    return {"type": "function_call", "id": f"fc_{number}", "status": "completed", **own}


def chat_call(number: int) -> dict[str, Any]:
    function = {"name": "weather", "arguments": f'{{"n": {number}}}'}
    return {"type": "function", "id": f"c{number}", "function": function}


def output(number: int) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": f"c{number}", "output": "sunny"}


def test_calls_belong_to_the_assistants_turn() -> None:
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]}
    look = [{"type": "text", "text": "I look."}]
    results = [{"role": "tool", "tool_call_id": f"c{number}", "content": "sunny"} for number in (1, 2)]
    calls = [chat_call(1), chat_call(2)]
    items = [USER, thought, said, call(1), call(2), output(1), output(2)]
    expected = [USER, {"role": "assistant", "content": look, "tool_calls": calls}, *results]
    assert Conversation({"input": items}).messages == expected
    assert Conversation({"input": [USER, call(1), call(2), said, output(1), output(2)]}).messages == expected
    alone = Conversation({"input": [USER, call(1), output(1), call(2)]}).messages
    assert [message["role"] for message in alone] == ["user", "assistant", "tool", "assistant"]
    assert alone[3] == {"role": "assistant", "content": None, "tool_calls": [chat_call(2)]}


def test_an_output_of_parts() -> None:
    item = output(1) | {"output": [{"type": "input_text", "text": "sun"}]}
    assert Conversation({"input": [item]}).messages[0]["content"] == [{"type": "text", "text": "sun"}]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("messages[0].content", "instructions"),
        ("messages[1].content", "input[0].content"),
        ("messages[2].content", "input[2].content"),
        ("messages[2].tool_calls", "input[3]"),
        ("messages[2].tool_calls[1].function.arguments", "input[4].arguments"),
        ("messages[2].tool_calls[1].id", "input[4].call_id"),
        ("messages[3].content", "input[5].output"),
        ("messages[3].tool_call_id", "input[5].call_id"),
        ("messages", "input"),
        ("seed", "seed"),
    ],
)
def test_fields_are_named_as_the_caller_has_them(path: str, expected: str) -> None:
    said = {"role": "assistant", "content": "I look."}
    items = [USER, {"type": "reasoning"}, said, call(1), call(2), output(1)]
    assert Conversation({"instructions": "Be brief.", "input": items}).path(path) == expected


@pytest.mark.parametrize(
    ("item", "field"),
    [
        (call(1) | {"arguments": {}}, "input[0].arguments"),
        (call(1) | {"call_id": None}, "input[0].call_id"),
        (call(1) | {"namespace": "n"}, "input[0].namespace"),
        (output(1) | {"output": [{"type": "input_image"}]}, "input[0].output[0]"),
        (output(1) | {"output": 3}, "input[0].output"),
        (output(1) | {"colour": 3}, "input[0].colour"),
        ({"role": "assistant", "content": "a", "tool_calls": [{}]}, "input[0].tool_calls"),
    ],
)
def test_what_is_refused(item: Any, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Conversation({"input": [item]})
    assert caught.value.violations[0].field == field
