"""Calls of tools by programs that people use, on SmolLM2 with a chat template that has tools.

Calls are constrained, so that a small model makes them, though not those of a large one.
"""

from __future__ import annotations

import json

import pytest

from gateway.clients.conftest import OPENAI, Program, javascript_program, python_program

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_ai_sdk_reads_calls(tools_url: str, api: str) -> None:
    answer = javascript_program("ai_sdk.mjs", tools_url, "gradellm", api, "tools")
    assert answer["calls"] == answer["streamed"] != []
    assert answer["calls"][0]["toolName"] == "weather"
    assert isinstance(answer["calls"][0]["input"]["city"], str)
    assert "tool-input-delta" in answer["parts"]


@pytest.mark.parametrize("call", OPENAI)
def test_openai_packages_parse_calls(tools_url: str, call: Program) -> None:
    answer = call(tools_url, "gradellm", "tools")
    whole, streamed = answer["chat"]
    assert answer["response"] == [whole, streamed] == [whole, whole]
    assert whole[0][0] == "Weather"
    assert isinstance(whole[0][1]["city"], str)


def test_litellm_reads_calls(tools_url: str) -> None:
    answer = python_program("litellm_calls.py", tools_url, "gradellm", "tools")
    assert answer["calls"] == answer["streamed_calls"] != []
    name, arguments = answer["calls"][0]
    assert name == "get_weather"
    assert isinstance(json.loads(arguments)["city"], str)


def test_instructor_returns_a_pydantic_model_from_a_call(tools_url: str) -> None:
    answer = python_program("instructor_model.py", tools_url, "gradellm", "TOOLS")
    assert (answer["city"], answer["country"]) == ("Paris", "France")
