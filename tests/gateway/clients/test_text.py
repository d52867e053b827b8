"""Text, streams and objects that match a schema, by programs that people use, on SmolLM2."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.clients.conftest import OPENAI, Program, gateway_of, javascript_program, python_program, real_model

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]
CAPITAL = {"city": "Paris", "country": "France"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with gateway_of(real_model("smollm2")) as url:
        yield url


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_ai_sdk_streams_the_text_of_the_whole_answer(url: str, api: str) -> None:
    answer = javascript_program("ai_sdk.mjs", url, "smollm2", api, "text")
    assert answer["text"] == answer["streamed"]
    assert "Paris" in answer["text"]
    assert answer["finish"] in ("stop", "length")
    assert 0 < answer["tokens"] <= 16


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_ai_sdk_generates_an_object(url: str, api: str) -> None:
    answer = javascript_program("ai_sdk.mjs", url, "smollm2", api, "object")
    assert answer["object"] == answer["streamed"]
    assert set(answer["object"]) == {"city", "country", "large"}


@pytest.mark.parametrize("call", OPENAI)
def test_openai_packages_stream_and_parse_what_whole_answers_have(url: str, call: Program) -> None:
    answer = call(url, "smollm2")
    for api in ("chat", "completion", "response"):
        whole, streamed = answer[api]
        assert whole == streamed
        assert "Paris" in whole
    assert answer["parsed"] == [CAPITAL] * 4


def test_instructor_returns_a_pydantic_model(url: str) -> None:
    answer = python_program("instructor_model.py", url, "smollm2", "JSON_SCHEMA")
    assert CAPITAL.items() <= answer.items()
    assert 1 <= answer["population"] <= 99_999_999


def test_litellm_completes_streams_and_counts(url: str) -> None:
    answer = python_program("litellm_calls.py", url, "smollm2")
    assert answer["text"] == answer["streamed"]
    assert "Paris" in answer["text"]
    assert answer["usage"][0] == answer["usage"][1] > 0
    assert answer["object"] == {"city": "Paris"}
    assert answer["choices"] == 2
