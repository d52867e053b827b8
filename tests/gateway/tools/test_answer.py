"""Answers with calls of tools and reasoning, read by OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

import openai
import pytest

from gradellm import Client, Explanation, Token
from gradellm_gateway.tools.answer import AnswerForm, AnswerReader
from gradellm_gateway.tools.request import ToolRequest
from server.conftest import RunningServer
from support.tools.answers import called
from support.tools.scripted import ScriptedClient
from support.tools.scripted_gateway import serving
from support.tools.templates import SHORT

TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("weather", "time")
]
MESSAGES: Any = [{"role": "user", "content": "How is Bonn?"}]
THOUGHT = ("<think>", "Hm.", "</think>", "I ", "look.\n", "<tool_call>")
CALL = ('{"name": "time", ', '"arguments": {"at": ', '"noon"}}', "</tool_call>", "")


Chat = Callable[..., Any]


def scripted(*texts: str, **model: Any) -> ScriptedClient:
    answer = called(texts) if texts else called()
    return ScriptedClient(answer, **{"has_tools": True, "tool_call_parser": "hermes", **model})


def collected(chunks: Any) -> tuple[dict[str, Any], list[Any], str]:
    """The message that a stream's deltas add up to, the objects `gradellm`, and the reason of the end."""
    message: dict[str, Any] = {"content": "", "reasoning": "", "reasoning_content": "", "tool_calls": {}}
    own, reason = [], ""
    for chunk in chunks:
        delta = chunk.choices[0].delta.model_dump()
        for name in ("content", "reasoning", "reasoning_content"):
            message[name] += delta.get(name) or ""
        for call in delta.get("tool_calls") or ():
            function = call["function"]
            if call.get("id"):
                assert call["index"] == len(message["tool_calls"])
                assert call["type"] == "function"
                message["tool_calls"][call["index"]] = [function["name"], ""]
            message["tool_calls"][call["index"]][1] += function["arguments"] or ""
        own.append((chunk.model_extra or {}).get("gradellm") or {})
        reason = chunk.choices[0].finish_reason or reason
    return message, own, reason


def test_calls_are_streamed_with_what_they_came_from() -> None:
    with serving(client := scripted()) as chat:
        chunks = chat.chat.completions.create(
            model="gradellm", messages=MESSAGES, tools=TOOLS, stream=True, extra_body={"gradellm": {}}
        )
        message, own, reason = collected(chunks)
    assert client.keywords["tools"] == TOOLS
    assert message["tool_calls"] == {0: ["weather", '{"city": "Bonn", "n": 2}']}
    assert (message["content"], reason) == ("", "tool_calls")
    (call,) = own[-1]["tool_calls"]
    assert (call["index"], call["name"]) == (0, "weather")
    assert call["name_tokens"] == [2, 3]
    assert (call["name_sources"][0]["kind"], call["name_sources"][0]["label"]) == ("tool", "weather")
    city = call["values"][0]
    assert (city["name"], city["sources"][0]["kind"], city["sources"][0]["label"]) == ("city", "segment", "town")
    assert sum("token" in each for each in own) == 11  # all events are there, those of held back text, too
    assert sum("attribution" in each for each in own) == 11


def test_an_answer_that_is_not_streamed() -> None:
    with serving(scripted()) as chat:
        answer: Any = chat.chat.completions.create(
            model="gradellm", messages=MESSAGES, tools=TOOLS, extra_body={"gradellm": {}}
        )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == (
        "function",
        "weather",
        {"city": "Bonn", "n": 2},
    )
    assert call.id.startswith("call_")
    assert answer.gradellm_tool_calls[0]["values"][1]["sources"][0]["label"] == "tool"
    assert Explanation.from_json(json.dumps(answer.gradellm)).text.startswith("<tool_call>")


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_content_and_a_call(stream: bool) -> None:
    with serving(scripted(*THOUGHT, *CALL)) as chat:
        answer: Any = chat.chat.completions.create(model="gradellm", messages=MESSAGES, tools=TOOLS, stream=stream)
        if stream:
            message, _, reason = collected(answer)
            calls = [(name, arguments) for name, arguments in message["tool_calls"].values()]
        else:
            message, reason = answer.choices[0].message.model_dump(), answer.choices[0].finish_reason
            calls = [(c["function"]["name"], c["function"]["arguments"]) for c in message["tool_calls"]]
    assert message["reasoning"] == message["reasoning_content"] == "Hm."
    assert (message["content"], reason) == ("I look.", "tool_calls")
    assert calls == [("time", '{"at": "noon"}')]


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_is_left_out_on_request(stream: bool) -> None:
    body = {"include_reasoning": False}
    with serving(scripted("<think>", "Hm.</think>", "Yes")) as chat:
        answer: Any = chat.chat.completions.create(model="gradellm", messages=MESSAGES, stream=stream, extra_body=body)
        message = collected(answer)[0] if stream else answer.choices[0].message.model_dump()
    assert message["content"] == "Yes"
    assert not message.get("reasoning")


@pytest.mark.parametrize("stream", [False, True])
def test_one_call_alone(stream: bool) -> None:
    two = ("<tool_call>", *CALL[:-1], "\n<tool_call>", *CALL)
    for is_parallel in (True, False):
        with serving(scripted(*two)) as chat:
            answer: Any = chat.chat.completions.create(
                model="gradellm", messages=MESSAGES, tools=TOOLS, stream=stream, parallel_tool_calls=is_parallel
            )
            calls = collected(answer)[0]["tool_calls"] if stream else answer.choices[0].message.tool_calls
        assert len(calls) == (2 if is_parallel else 1)


def test_a_malformed_call_is_text() -> None:
    text = ("<tool_call>", '{"name": "time", "arguments": {"at": ]}}', "</tool_call>")
    with serving(scripted(*text)) as chat:
        answer = chat.chat.completions.create(model="gradellm", messages=MESSAGES, tools=TOOLS)
    assert answer.choices[0].message.content == "".join(text)
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"


def test_without_a_call_the_answer_is_text() -> None:
    choices: tuple[Literal["auto", "none"], ...] = ("auto", "none")
    for choice in choices:
        with serving(scripted("Fine", " weather", ".")) as chat:
            chunks = chat.chat.completions.create(
                model="gradellm", messages=MESSAGES, tools=TOOLS, tool_choice=choice, stream=True
            )
            message, _, reason = collected(chunks)
        assert (message["content"], reason) == ("Fine weather.", "stop")
    with serving(scripted()) as chat:  # nothing is read as a call
        answer: Any = chat.chat.completions.create(model="gradellm", messages=MESSAGES, tools=TOOLS, tool_choice="none")
    assert answer.choices[0].message.content.startswith("<tool_call>")


def test_markers_that_are_special_tokens() -> None:
    """They have no text in a completion; ids of Mistral's calls are nine letters and digits."""
    client = scripted("", '[{"name": "time", "arguments": {}}]', "", tool_call_parser="mistral")
    client.ids = {"[TOOL_CALLS]": 50}
    with serving(client) as chat:
        answer: Any = chat.chat.completions.create(model="gradellm", messages=MESSAGES, tools=TOOLS)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "time"
    assert len(call.id) == 9
    assert call.id.isalnum()


def test_the_place_of_the_content_in_the_completion() -> None:
    reader = AnswerReader(AnswerForm(ToolRequest(), None, "qwen3", {"<think>": 7}))
    for index, text in enumerate(("", "Hm.</think>", "Yes.")):
        reader.add(Token(index, 7, text, 0, 0, 0.0, (), not text, None))
    reader.finish()
    assert reader.content_span == (len("Hm.</think>"), len("Yes."))


def test_a_model_whose_template_has_no_tools(client: openai.OpenAI, server: RunningServer) -> None:
    with Client(server.address) as direct:
        expected = direct.explain(messages=MESSAGES, max_new_tokens=4, attribution=None)
    answer = client.chat.completions.create(model="gradellm", messages=MESSAGES, tools=TOOLS, max_tokens=4)
    assert answer.choices[0].message.content == expected.text
    with pytest.raises(openai.BadRequestError, match="the model's chat template has no tools") as caught:
        client.chat.completions.create(model="gradellm", messages=MESSAGES, tools=TOOLS, tool_choice="required")
    assert caught.value.param == "tool_choice"
    call = {"id": "c", "type": "function", "function": {"name": "time", "arguments": "{}"}}
    history: Any = [*MESSAGES, {"role": "assistant", "tool_calls": [call]}]
    with pytest.raises(openai.BadRequestError, match="has no calls of tools") as caught:
        client.chat.completions.create(model="gradellm", messages=history)
    assert caught.value.param == "messages[1].tool_calls"


def test_a_history_with_tools_is_generated_from(
    client: openai.OpenAI, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.engine.model.tokenizer, "chat_template", SHORT)
    call = {"id": "c", "type": "function", "function": {"name": "time", "arguments": "{}"}}
    history: Any = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "noon"},
    ]
    answer: Any = client.chat.completions.create(
        model="gradellm", messages=history, max_tokens=2, extra_body={"gradellm": {}}
    )
    roles = {token["message"]: token["role"] for token in answer.gradellm["started"]["prompt_tokens"]}
    assert roles == {None: "template", 0: "user", 1: "assistant", 2: "tool"}
