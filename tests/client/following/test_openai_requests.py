"""Requests of OpenAI's API: whether their log-probabilities can be compared, and their messages."""

from __future__ import annotations

from typing import Any

import pytest

from gradellm.following.openai_requests import constrains_sampling, plain_messages


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
        ({"messages": [{"role": "user", "content": "Hi"}]}, [("user", "Hi")]),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
            [("user", "ab")],
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, None),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, None),
        ({"messages": [{"role": "user", "content": "Hi"}], "tools": [{}]}, None),
        ({"messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": False}, None),
        ({"messages": []}, None),
        ({"messages": ["Hi"]}, None),
        ({}, None),
    ],
)
def test_messages(request_: dict[str, Any], expected: list[tuple[str, str]] | None) -> None:
    assert plain_messages(request_) == expected
