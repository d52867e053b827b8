"""Calls of tools by programs that people use, on Qwen2.5-Coder-1.5B: SmolLM2's chat template has no tools."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from gateway.clients.conftest import gateway_of, javascript_program, python_program

pytestmark = [pytest.mark.real, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with gateway_of("qwen", dtype="bfloat16") as url:
        yield url


def test_ai_sdk_reads_calls(url: str) -> None:
    answer = javascript_program("ai_sdk.mjs", url, "qwen", "chat", "tools")
    assert answer["calls"] == answer["streamed"]
    assert answer["calls"][0]["toolName"] == "weather"
    assert "Bonn" in answer["calls"][0]["input"]["city"]
    assert "tool-input-delta" in answer["parts"]


def test_litellm_reads_calls(url: str) -> None:
    answer = python_program("litellm_calls.py", url, "qwen", "tools")
    assert answer["calls"] == answer["streamed_calls"]
    name, arguments = answer["calls"][0]
    assert name == "get_weather"
    assert "Bonn" in json.loads(arguments)["city"]


def test_instructor_returns_a_pydantic_model_from_a_call(url: str) -> None:
    answer = python_program("instructor_model.py", url, "qwen", "TOOLS")
    assert (answer["city"], answer["country"]) == ("Paris", "France")
