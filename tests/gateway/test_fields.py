"""Validation of every known field with values of every type, and field names in errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gradellm import InvalidRequestError
from gradellm.wire.keywords import AttributionKeywords
from gradellm_gateway.chat import ChatRequest
from gradellm_gateway.fields import FIELDS, FieldNames, quoted

MESSAGES: Any = [{"role": "user", "content": "Once"}]
VALUES: dict[str, Any] = {
    "true": True,
    "false": False,
    "zero": 0,
    "one": 1,
    "float": 1.5,
    "text": "false",
    "list": [1],
    "empty list": [],
    "texts": ["a"],
    "object": {"a": 1},
    "empty object": {},
}
# Which of those each field takes; every other one is refused.
TAKEN: dict[str, set[str]] = {
    "model": {"text"},
    "messages": set(),
    "stream": {"true", "false"},
    "stream_options": {"empty object"},
    "max_tokens": {"zero", "one"},  # the server validates the number
    "max_completion_tokens": {"zero", "one"},
    "temperature": {"zero", "one", "float"},
    "top_p": {"zero", "one", "float"},
    "seed": {"zero", "one"},
    "stop": {"text", "empty list", "texts"},
    "logprobs": {"true", "false"},
    "top_logprobs": {"zero", "one"},
    "n": {"one"},
    "gradellm": {"empty object"},
    "return_token_ids": {"true", "false"},
    "user": {"text"},
    "metadata": {"empty object"},
    "store": {"true", "false"},
    "safety_identifier": {"text"},
    "prompt_cache_key": {"text"},
    "prompt_cache_retention": {"text"},
    "service_tier": {"text"},
    "parallel_tool_calls": {"true", "false"},
    "include_reasoning": {"true", "false"},
    "frequency_penalty": {"zero", "one", "float"},
    "presence_penalty": {"zero", "one", "float"},
    "repetition_penalty": {"zero", "one", "float"},
    "min_p": {"zero", "one", "float"},
    "top_k": {"zero", "one"},
    "logit_bias": {"empty object"},
    "min_tokens": {"zero", "one"},
    "ignore_eos": {"true", "false"},
    "stop_token_ids": {"list", "empty list"},
    "skip_special_tokens": {"true", "false"},
    "chat_template_kwargs": {"object", "empty object"},
    "add_generation_prompt": {"true", "false"},
    "continue_final_message": {"true", "false"},
    "use_beam_search": {"false"},
    "length_penalty": {"one"},
    "include_stop_str_in_output": {"false"},
    "spaces_between_special_tokens": {"true"},
    "add_special_tokens": {"false"},
    "tools": {"empty list"},
    "tool_choice": set(),
    "functions": {"empty list"},
    "function_call": set(),
    "response_format": set(),
    "structured_outputs": set(),
    "reasoning_effort": set(),
    "modalities": set(),
    "verbosity": set(),
}


def refused(body: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as raised:
        ChatRequest.from_json(body)
    return raised.value


def body_with(field: str, value: Any) -> dict[str, Any]:
    extra = {"logprobs": True} if field == "top_logprobs" else {}
    return {"messages": MESSAGES, **extra, field: value}


def test_the_table_has_every_field() -> None:
    assert TAKEN.keys() == FIELDS.keys()


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("kind", VALUES)
def test_fields_of_the_wrong_type_are_refused(field: str, kind: str) -> None:
    body = body_with(field, VALUES[kind])
    if kind in TAKEN[field]:
        ChatRequest.from_json(body)
        return
    error = refused(body)
    param = error.violations[0].field
    assert param == field or param.startswith((f"{field}.", f"{field}["))
    assert str(error).startswith(f"{param}: ")


@pytest.mark.parametrize("field", FIELDS.keys() - {"messages"})
def test_null_is_as_good_as_absent(field: str) -> None:
    with_null, without = ChatRequest.from_json(body_with(field, None)), ChatRequest.from_json(body_with("model", None))
    assert with_null.keywords == without.keywords
    assert (with_null.is_streamed, with_null.logprobs) == (without.is_streamed, field == "top_logprobs")


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("stream", "false", "stream"),
        ("n", True, "n"),
        ("n", 1.0, "n"),
        ("n", 17, "n"),
        ("n", 10**6, "n"),
        ("n", 10**400, "n"),
        ("n", -1, "n"),
        ("logit_bias", {"a": 1}, "logit_bias.a"),
        ("logit_bias", {"5": "1"}, "logit_bias.5"),
        ("logit_bias", {"5": float("nan")}, "logit_bias.5"),
        ("logit_bias", {"-5": 1}, "logit_bias.-5"),
        ("stop_token_ids", [1, "a"], "stop_token_ids[1]"),
        ("logprobs", "false", "logprobs"),
        ("stream_options", [1], "stream_options"),
        ("stream_options", {"include_usage": "false"}, "stream_options.include_usage"),
        ("stream_options", {"include": True}, "stream_options.include"),
        ("stream_options", {"continuous_usage_stats": 1}, "stream_options.continuous_usage_stats"),
        ("stop", ["a", 1], "stop[1]"),
        ("metadata", {"a": 1}, "metadata.a"),
        ("temperature", float("inf"), "temperature"),
        ("frequency_penalty", False, "frequency_penalty"),
        ("presence_penalty", "0.5", "presence_penalty"),
        ("response_format", "json_object", "response_format"),
        ("response_format", {"type": "xml"}, "response_format.type"),
        ("modalities", ["text", "audio"], "modalities"),
        ("tool_choice", "required", "tool_choice"),
        ("colour", 1, "colour"),
        ("c" * 100, 1, "c" * 40 + "..."),
        ("audio", {}, "audio"),
        ("gradellm", {"colour": 1}, "gradellm.colour"),
        ("top_logprobs", 2, "top_logprobs"),
        ("messages", "Once", "messages"),
        ("messages", {}, "messages"),
        ("messages", None, "messages"),
        ("messages", [], "messages"),
        ("messages", ["Once"], "messages[0]"),
    ],
)
def test_invalid_field_values_are_refused(field: str, value: Any, param: str) -> None:
    assert refused({"messages": MESSAGES, field: value}).violations[0].field == param


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({}, "role"),
        ({"content": "a"}, "role"),
        ({"role": "user"}, "content"),
        ({"role": 1, "content": "a"}, "role"),
        ({"role": None, "content": "a"}, "role"),
        ({"role": "tool", "content": None}, "content"),
        ({"role": "tool", "content": "a", "tool_call_id": 1}, "tool_call_id"),
        ({"role": "tool", "content": "a", "tool_calls": [{"function": {"name": "f"}}]}, "tool_calls"),
        ({"role": "function", "name": "f", "content": "a"}, "role"),
        ({"role": "User", "content": "a"}, "role"),
        ({"role": "", "content": "a"}, "role"),
        ({"role": "user", "content": None}, "content"),
        ({"role": "user", "content": 1}, "content"),
        ({"role": "user", "content": {}}, "content"),
        ({"role": "user", "content": []}, "content"),
        ({"role": "user", "content": ["a"]}, "content[0]"),
        ({"role": "user", "content": [{"text": "a"}]}, "content[0]"),
        ({"role": "user", "content": [{"type": "text", "text": 1}]}, "content[0].text"),
        ({"role": "user", "content": [{"type": "text"}]}, "content[0].text"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}, "content[1]"),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, "content[0]"),
        ({"role": "user", "content": [{"type": "text", "text": "a", "detail": "x"}]}, "content[0].detail"),
        ({"role": "user", "content": "a", "name": 1}, "name"),
        ({"role": "assistant", "content": "a", "function_call": {"name": "f"}}, "function_call"),
        ({"role": "assistant", "content": "a", "tool_calls": 1}, "tool_calls"),
        ({"role": "assistant", "content": "a", "tool_calls": [{}]}, "tool_calls[0].function"),
        ({"role": "assistant", "tool_calls": [{"type": "x", "function": {}}]}, "tool_calls[0].type"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": 1}}]}, "tool_calls[0].function.name"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "x": 1}}]}, "tool_calls[0].function.x"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f"}, "x": 1}]}, "tool_calls[0].x"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
            "tool_calls[0].function.arguments",
        ),
        ({"role": "assistant", "content": "a", "reasoning_content": 1}, "reasoning_content"),
        ({"role": "assistant", "content": "a", "refusal": "no"}, "refusal"),
        ({"role": "assistant", "content": "a", "audio": {"id": "x"}}, "audio"),
        ({"role": "user", "content": "a", "tool_call_id": "x"}, "tool_call_id"),
        ({"role": "user", "content": "a", "weight": 0}, "weight"),
        ({"role": "user", "content": "a", "colour": ""}, "colour"),
    ],
)
def test_invalid_messages_are_refused_by_path(message: Any, param: str) -> None:
    error = refused({"messages": [*MESSAGES, message]})
    assert error.violations[0].field == f"messages[1].{param}"


def test_an_assistant_message_may_be_sent_back_unchanged() -> None:
    nothing: dict[str, Any] = dict.fromkeys(("name", "refusal", "audio", "function_call", "tool_calls", "tool_call_id"))
    answer = {"role": "assistant", "content": "a", **nothing, "annotations": []}
    developer_message = {"role": "developer", "content": [{"type": "text", "text": "b", "annotations": None}]}
    assert ChatRequest.from_json({"messages": [answer, developer_message]}).keywords["messages"] == [
        {"role": "assistant", "content": "a"},
        {"role": "system", "content": "b"},
    ]


def test_speakers_of_every_role_may_have_a_name() -> None:
    turns = [{"role": role, "content": "a", "name": "bob"} for role in ("system", "user", "assistant")]
    assert ChatRequest.from_json({"messages": turns}).keywords["messages"] == turns


def test_calls_and_answers_of_tools() -> None:
    def call(arguments: object) -> dict[str, Any]:
        return {"id": "c", "type": "function", "index": 0, "function": {"name": "f", "arguments": arguments}}

    calls = [call('{"a": 1}'), call('{"a": '), call(""), call("[1]"), call("[" * 10**5)]
    thinking = {"reasoning_content": "Hm.", "reasoning": "Hm."}
    turns: list[dict[str, Any]] = [
        {"role": "assistant", "content": None, "tool_calls": calls, **thinking},
        {"role": "assistant", "tool_calls": calls[:1]},
        {"role": "tool", "content": [{"type": "text", "text": "12"}], "tool_call_id": "c", "name": "f"},
    ]
    first, second, answer = ChatRequest.from_json({"messages": turns}).keywords["messages"]
    arguments = [each["function"]["arguments"] for each in first["tool_calls"]]
    assert arguments == ['{"a": 1}', "{}", "{}", "{}", "{}"]  # what is no object is none, as the model has written it
    assert (first["content"], first["reasoning_content"], second["content"]) == ("", "Hm.", "")
    assert answer == {"role": "tool", "content": "12", "tool_call_id": "c", "name": "f"}
    names = FieldNames({"messages": turns})
    assert names.path("input.messages[0].tool_calls[1].name") == "messages[0].tool_calls[1].function.name"


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        1,
        10**500,
        1.5,
        "a",
        "a" * 39 + '\n"\\' * 40,
        [],
        [1] * 9,
        {},
        {"a": [1]},
        "\u2028" * 90,
        "\ud800" * 90,
    ],
)
def test_quoted_values_are_complete_json_or_omitted(value: Any) -> None:
    text = quoted(value)
    assert len(text) < 300
    if text[0] in '"[{':
        json.loads(text.removesuffix("..."))


NAMES = FieldNames(
    {"messages": [], "stop": "x", "gradellm": {"segments": {"kite": 1, "card": 2}}},
    {"max_new_tokens": "max_tokens", "num_alternatives": "top_logprobs"},
    attribution="gradellm.{}",
    gradellm_fields={*AttributionKeywords.__annotations__, "segments", "top_k"},
)


@pytest.mark.parametrize(
    ("field", "path"),
    [
        ("max_new_tokens", "max_tokens"),
        ("num_alternatives", "top_logprobs"),
        ("temperature", "temperature"),
        ("seed", "seed"),
        ("stop[0]", "stop"),
        ("top_k", "gradellm.top_k"),
        ("input", "messages"),
        ("input.messages", "messages"),
        ("input.messages[2].content", "messages[2].content"),
        ("messages[2].role", "messages[2].role"),
        ("input.segments[1]", "gradellm.segments.card"),
        ("input.segments[1].name", "gradellm.segments.card"),
        ("input.segments[7]", "gradellm.segments[7]"),
        ("segments['kite']", "gradellm.segments.kite"),
        ("segments['a.b[1]']", "gradellm.segments.a.b[1]"),
        ("segments", "gradellm.segments"),
        ("attribution.preset", "gradellm.attribution"),
        ("attribution.seed", "gradellm.attribution_seed"),
        ("attribution.target_token_id", "gradellm.target"),
        ("attribution.contrast.text", "gradellm.contrast"),
        ("attribution.layers", "gradellm.layers"),
        ("attribution", "gradellm.attribution"),
        ("baseline_ids[3]", "gradellm.baseline_ids[3]"),
        ("request", "request"),
    ],
)
def test_errors_have_the_callers_names(field: str, path: str) -> None:
    assert NAMES.path(field) == path


def test_every_keyword_of_attribution_is_in_the_callers_object() -> None:
    for name in AttributionKeywords.__annotations__:
        assert NAMES.path(name) == f"gradellm.{name}"


def test_names_of_ours_in_a_description_are_the_callers_too() -> None:
    error = InvalidRequestError.of("forced_ids", "are 9 tokens; max_new_tokens allows 5 in all")
    error.reason = "INVALID_REQUEST"
    found = NAMES.error(error)
    assert str(found) == "forced_ids: are 9 tokens; max_tokens allows 5 in all"
    assert found.reason == "INVALID_REQUEST"
    assert NAMES.error(plain := InvalidRequestError("no field")) is plain


def test_a_request_that_the_server_does_not_read_names_its_largest_field() -> None:
    error = InvalidRequestError("refused: SERVER: Received message larger than max (5242915 vs. 4194304)")
    for body, name in (
        ({"prompt": "a", "stop": ["b" * 9]}, "stop"),
        ({"prompt": None, "prompt_ids": [1, 2]}, "prompt"),
        ({"messages": [{"content": "a" * 9}], "seed": 1}, "messages"),
    ):
        (violation,) = FieldNames(body).error(error).violations
        assert violation.field == name
        assert "5,242,915 bytes" in violation.description
        assert "4,194,304: shorten it" in violation.description


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [{"role": "user", "content": "a"}] * 10_001}, "messages"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}] * 513}]},
            "messages[0].tool_calls",
        ),
    ],
)
def test_lists_that_take_long_to_convert_are_refused_by_their_length(body: Any, param: str) -> None:
    with pytest.raises(InvalidRequestError, match="the limit is") as caught:
        ChatRequest.from_json(body)
    assert caught.value.violations[0].field == param
