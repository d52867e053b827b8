"""Definitions and calls of tools, as callers send them."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from gradellm_engine import InvalidRequestError, Message, PromptInput
from gradellm_engine.tokenization.tools import (
    MAX_TOOLS,
    ToolCall,
    call_parser,
    read_arguments,
    read_tools,
    segment_of,
)
from gradellm_engine.utils.bounded_json import MAX_LEVELS
from support.tools.templates import HERMES, LLAMA3, MISTRAL, QWEN3_CODER


def tool(name: object = "f", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def test_definitions_are_read_as_they_are() -> None:
    tools = [tool("get_weather", description="x", parameters={"type": "object"}, strict=True), tool("ns/get.it-2")]
    assert read_tools("input.tools", json.dumps(tools)) == tools
    assert [segment_of(each) for each in tools] == ["tool:get_weather", "tool:ns/get.it-2"]


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ("{", "input.tools", "not JSON"),
        ("{}", "input.tools", "an object"),
        ("[]", "input.tools", "a list of 0"),
        (json.dumps([tool(f"f{i}") for i in range(MAX_TOOLS + 1)]), "input.tools", "a list of 513"),
        ("[1]", "input.tools[0]", "must be an object"),
        ('[{"type": "function"}]', "input.tools[0]", "must be an object"),
        ('[{"type": "web_search", "function": {"name": "f"}}]', "input.tools[0].type", "must be function"),
        (json.dumps([tool("a b")]), "input.tools[0].function.name", "letters"),
        (json.dumps([tool("a" * 200)]), "input.tools[0].function.name", "1 to 128"),
        (json.dumps([tool(3)]), "input.tools[0].function.name", "letters"),
        (json.dumps([tool(), tool()]), "input.tools[1].function.name", "earlier tool"),
        ('[{"type": "function", "function": {"name": "f", "x": NaN}}]', "input.tools", "NaN is not a JSON number"),
        (
            '[{"type": "function", "function": {"name": "f", "x": 1e999}}]',
            "input.tools",
            "at #/0/function/x: 1e999 is not",
        ),
        ('[{"type": "function", "function": {"name": "f", "x": "\\ud800"}}]', "input.tools", "lone surrogate"),
        ('[{"type": "function", "function": {"name": "f", "\\ud800": 1}}]', "input.tools", "lone surrogate"),
        (f'[{{"type": "function", "function": {{"name": "f", "x": {nested(100)}}}}}]', "input.tools", "64 levels"),
        (nested(1_000_000), "input.tools", "64 levels"),
        ("9" * 100_000, "input.tools", "4,300 digits"),
    ],
)
def test_other_text_is_refused_by_name_and_soon(text: str, field: str, words: str) -> None:
    began = time.monotonic()
    with pytest.raises(InvalidRequestError, match=words) as caught:
        read_tools("input.tools", text)
    assert caught.value.field == field
    assert time.monotonic() - began < 2


def test_arguments_are_an_object() -> None:
    assert read_arguments("arguments", '{"a": [1]}') == {"a": [1]}
    assert read_arguments("arguments", "") == {}
    for text in ("[]", "1", "{", nested(MAX_LEVELS + 10), '{"a": NaN}'):
        with pytest.raises(InvalidRequestError):
            read_arguments("arguments", text)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (Message("assistant", "", (ToolCall("f", "{"),)), "input.messages[0].tool_calls[0].arguments"),
        (Message("assistant", "", (ToolCall("no name"),)), "input.messages[0].tool_calls[0].name"),
        (Message("assistant", "", (ToolCall("f", "{}", "\ud800"),)), "input.messages[0].tool_calls[0].id"),
        (Message("assistant", "", (ToolCall("f"),) * 10_000), "input.messages[0].tool_calls"),
        (Message("assistant", "", reasoning="\ud800"), "input.messages[0].reasoning"),
        (Message("tool", "", tool_call_id="\ud800"), "input.messages[0].tool_call_id"),
    ],
)
def test_messages_check_their_calls(message: Message, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        PromptInput(messages=(message,))
    assert caught.value.field == field


def test_tools_need_messages() -> None:
    with pytest.raises(InvalidRequestError, match=r"input\.tools"):
        PromptInput(prompt="x", tools=json.dumps([tool()]))


@pytest.mark.parametrize(
    ("template", "parser"),
    [(HERMES, "hermes"), (LLAMA3, "llama3_json"), (MISTRAL, "mistral"), (QWEN3_CODER, "qwen3_coder"), ("{{ x }}", "")],
)
def test_the_form_of_calls_is_that_of_the_template(template: str, parser: str) -> None:
    assert call_parser(template) == parser
