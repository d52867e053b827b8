"""Requests of OpenAI's API: whether their log-probabilities can be compared, and how their prompts are made again."""

from __future__ import annotations

from typing import Any

import pytest

from gradellm import InvalidRequestError
from gradellm.following.openai_requests import constrains_sampling, prompt_keywords

HI: dict[str, Any] = {"role": "user", "content": "Hi"}
CALL: dict[str, Any] = {"id": "1", "type": "function", "function": {"name": "time", "arguments": "{}"}}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "time"}}


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({}, False),
        ({"response_format": {"type": "text"}, "tools": [], "stop": ["x"], "temperature": 2}, False),
        ({"response_format": {"type": "json_schema"}}, True),
        ({"tools": [{}]}, True),
        ({"tools": [{}], "tool_choice": "none"}, False),
        ({"structured_outputs": {"regex": "a"}}, True),
        ({"guided_json": {}}, True),
        ({"logit_bias": {"5": 1}}, True),
    ],
)
def test_requests_that_constrain_sampling(request_: dict[str, Any], expected: bool) -> None:
    assert constrains_sampling(request_) is expected


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"prompt": "Once", "add_special_tokens": True}, {"prompt": "Once"}),
        ({"prompt": [1, 2], "echo": False}, {"prompt_ids": [1, 2]}),
        ({"messages": [HI], "temperature": 1, "documents": None, "add_special_tokens": False}, {"messages": [HI]}),
        (
            {"messages": [{**HI, "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
            {"messages": [{"role": "user", "content": "ab"}]},
        ),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None}]},
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [CALL]}]},
        ),
        (
            {"messages": [HI, {"role": "tool", "tool_call_id": "1", "content": "noon"}]},
            {"messages": [HI, {"role": "tool", "tool_call_id": "1", "content": "noon"}]},
        ),
        (
            {"messages": [HI], "tools": [TOOL], "tool_choice": "auto"},
            {"messages": [HI], "tools": [TOOL]},
        ),
        (
            {"messages": [HI], "chat_template_kwargs": {"enable_thinking": False}, "add_generation_prompt": False},
            {"messages": [HI], "chat_template_kwargs": {"enable_thinking": False}, "add_generation_prompt": False},
        ),
    ],
)
def test_prompts(request_: dict[str, Any], expected: dict[str, Any]) -> None:
    assert prompt_keywords(request_) == expected


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({}, "request.messages"),
        ({"messages": []}, "request.messages"),
        ({"messages": ["Hi"]}, "request.messages[0]"),
        ({"messages": [HI, {"role": "user", "content": 3}]}, "request.messages[1].content"),
        ({"messages": [{**HI, "content": [{"type": "image_url"}]}]}, "request.messages[0].content[0]"),
        ({"messages": [{**HI, "audio": {"id": "a"}}]}, "request.messages[0].audio"),
        ({"messages": [HI], "functions": [{}]}, "request.functions"),
        ({"messages": [HI], "documents": [{}]}, "request.documents"),
        ({"messages": [HI], "chat_template": "x"}, "request.chat_template"),
        ({"messages": [HI], "reasoning_effort": "low"}, "request.reasoning_effort"),
        ({"messages": [HI], "add_special_tokens": True}, "request.add_special_tokens"),
        ({"prompt": "Once", "add_special_tokens": False}, "request.add_special_tokens"),
        ({"prompt": "Once", "echo": True}, "request.echo"),
        ({"prompt": ["a", "b"]}, "request.prompt"),
    ],
)
def test_prompts_that_cannot_be_made_again(request_: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        prompt_keywords(request_)
    assert raised.value.violations[0].field == field
    assert '"return_token_ids": true' in str(raised.value)
