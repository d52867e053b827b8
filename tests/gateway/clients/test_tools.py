"""Calls of tools by programs that people use, on SmolLM2 with a chat template that has tools.

Calls are constrained, so that a small model makes them, though not those of a large one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from gateway.clients.conftest import gateway_of, javascript_program, python_program, real_model
from support.tools.templates import HERMES

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("smollm2-tools")
    for path in real_model("smollm2").iterdir():
        (folder / path.name).symlink_to(path.resolve())
    template = folder / "chat_template.jinja"
    template.unlink()
    template.write_text(HERMES, encoding="utf-8")
    with gateway_of(folder) as url:
        yield url


def test_ai_sdk_reads_calls(url: str) -> None:
    answer = javascript_program("ai_sdk.mjs", url, "gradellm", "chat", "tools")
    assert answer["calls"] == answer["streamed"] != []
    assert answer["calls"][0]["toolName"] == "weather"
    assert isinstance(answer["calls"][0]["input"]["city"], str)
    assert "tool-input-delta" in answer["parts"]


def test_litellm_reads_calls(url: str) -> None:
    answer = python_program("litellm_calls.py", url, "gradellm", "tools")
    assert answer["calls"] == answer["streamed_calls"] != []
    name, arguments = answer["calls"][0]
    assert name == "get_weather"
    assert isinstance(json.loads(arguments)["city"], str)


def test_instructor_returns_a_pydantic_model_from_a_call(url: str) -> None:
    answer = python_program("instructor_model.py", url, "gradellm", "TOOLS")
    assert (answer["city"], answer["country"]) == ("Paris", "France")
