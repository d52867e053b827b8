"""Responses with reasoning and calls, and errors in a stream; test_responses.py among the routes has the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gradellm_gateway.errors import error_object
from gradellm_gateway.responses.answer import ResponseAnswer
from gradellm_gateway.responses.request import ResponseRequest
from gradellm_gateway.tools.answer import AnswerForm
from support.tools.answers import called
from support.tools.scripted import FINISHED, ScriptedClient
from support.tools.scripted_gateway import serving

TOOLS: Any = [{"type": "function", "name": name, "parameters": {"type": "object"}} for name in ("weather", "time")]
THOUGHT = ("<think>", "Hm.", "</think>", "I ", "look.\n", "<tool_call>")
CALL = ('{"name": "time", ', '"arguments": {"at": ', '"noon"}}', "</tool_call>", "")


def test_an_error_is_an_event() -> None:
    answer = ResponseAnswer(ResponseRequest.from_json({"input": "a"}), "m", "1", AnswerForm())
    event = answer.failure(error_object("it broke", "server_error"))
    assert event == {
        "type": "error",
        "code": "server_error",
        "message": "it broke",
        "param": None,
        "sequence_number": 0,
    }


def scripted(*texts: str) -> ScriptedClient:
    answer = called(texts) if texts else called()
    return ScriptedClient(answer, has_tools=True, tool_call_parser="hermes")


def collected(events: Any) -> list[Any]:
    """The items that a stream's deltas add up to, after a comparison with those of its end."""
    items: dict[int, list[Any]] = {}
    for event in events:
        if event.type == "response.output_item.added":
            items[event.output_index] = [event.item, ""]
        elif event.type.endswith(".delta"):
            assert event.item_id == items[event.output_index][0].id
            items[event.output_index][1] += event.delta
        elif event.type == "response.function_call_arguments.done":
            assert event.arguments == items[event.output_index][1]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    output: list[Any] = events[-1].response.output
    assert [item.id for item in output] == [item.id for item, _ in items.values()]
    for item, text in items.values():
        said = next(each for each in output if each.id == item.id)
        assert text == (said.arguments if said.type == "function_call" else said.content[0].text)
        if said.type == "function_call":
            assert item.call_id == said.call_id
    return output


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_text_and_a_call(stream: bool) -> None:
    with serving(client := scripted(*THOUGHT, *CALL)) as chat:
        answer: Any = chat.responses.create(
            model="gradellm",
            input="How is Bonn?",
            tools=TOOLS,
            stream=stream,
            include=["message.output_text.logprobs"],
        )
        events = list(answer) if stream else []
    output = collected(events) if stream else answer.output
    response = events[-1].response if stream else answer
    assert client.keywords["tools"] == [
        {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
        for name in ("weather", "time")
    ]
    thought, said, call = output
    assert (thought.type, thought.content[0].text, thought.summary) == ("reasoning", "Hm.", [])
    assert (said.type, said.content[0].text) == ("message", "I look.")
    assert [each.token for each in said.content[0].logprobs][:2] == ["I ", "look.\n"]
    assert (call.type, call.name, call.arguments) == ("function_call", "time", '{"at": "noon"}')
    assert call.call_id.startswith("call_")
    assert {item.status for item in output} == {"completed"}
    assert response.status == "completed"
    assert response.usage.output_tokens_details.reasoning_tokens == 3
    assert [tool.name for tool in response.tools] == ["weather", "time"]


def test_calls_have_what_they_came_from() -> None:
    with serving(scripted()) as chat:
        whole: Any = chat.responses.create(
            model="gradellm", input="How is Bonn?", tools=TOOLS, extra_body={"gradellm": {}}
        )
        events: Any = list(
            chat.responses.create(
                model="gradellm", input="How is Bonn?", tools=TOOLS, stream=True, extra_body={"gradellm": {}}
            )
        )
    (origin,) = whole.gradellm_tool_calls
    assert (origin["name"], origin["name_sources"][0]["label"]) == ("weather", "weather")
    own = [event.gradellm for event in events if event.type == "response.gradellm"]
    assert own[-1]["tool_calls"] == [origin]
    assert not any("tool_calls" in each for each in own[:-1])
    assert sum("attribution" in each for each in own) == 11


@pytest.mark.parametrize("stream", [False, True])
def test_one_call_alone(stream: bool) -> None:
    two = ("<tool_call>", *CALL[:-1], "\n<tool_call>", *CALL)
    for is_parallel in (True, False):
        with serving(scripted(*two)) as chat:
            answer: Any = chat.responses.create(
                model="gradellm", input="a", tools=TOOLS, stream=stream, parallel_tool_calls=is_parallel
            )
            output = collected(list(answer)) if stream else answer.output
        assert [item.name for item in output] == ["time"] * (2 if is_parallel else 1)


def test_a_malformed_call_is_text_or_incomplete() -> None:
    text = ("<tool_call>", '{"name": "time", "arguments": {"at": ]}}', "</tool_call>")
    with serving(scripted(*text)) as chat:
        whole: Any = chat.responses.create(model="gradellm", input="a", tools=TOOLS)
        events = list(chat.responses.create(model="gradellm", input="a", tools=TOOLS, stream=True))
    assert whole.output_text == "".join(text)
    assert [item.status for item in collected(events)] == ["incomplete"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "time"}])
def test_required_calls_are_constrained(choice: Any) -> None:
    with serving(client := scripted()) as chat:
        answer: Any = chat.responses.create(model="gradellm", input="a", tools=TOOLS, tool_choice=choice)
    assert "time" in client.keywords["grammar"]
    assert ("weather" in client.keywords["grammar"]) == (choice == "required")
    assert answer.output[0].type == "function_call"


def test_the_output_of_calls_is_sent_back() -> None:
    with serving(client := scripted(*THOUGHT, *CALL)) as chat:
        first: Any = chat.responses.create(model="gradellm", input="How is Bonn?", tools=TOOLS)
        call = first.output[-1]
        items: Any = [
            {"role": "user", "content": "How is Bonn?"},
            *first.output,
            {"type": "function_call_output", "call_id": call.call_id, "output": "noon"},
        ]
        chat.responses.create(model="gradellm", input=items, tools=TOOLS)
    user, said, result = client.keywords["messages"]
    assert (user["role"], said["role"], said["content"]) == ("user", "assistant", "I look.")
    assert said["tool_calls"][0]["id"] == call.call_id
    assert result == {"role": "tool", "tool_call_id": call.call_id, "content": "noon"}


def test_reasoning_is_left_out_on_request() -> None:
    with serving(scripted(*THOUGHT[:4])) as chat:
        answer: Any = chat.responses.create(model="gradellm", input="a", extra_body={"include_reasoning": False})
    assert [item.type for item in answer.output] == ["message"]
    assert answer.output_text == "I "


def test_a_second_call_that_is_cut_off_is_text_behind_the_first() -> None:
    cut = replace(FINISHED, reason="max_new_tokens")
    answer = replace(called(("<tool_call>", *CALL[:-1], "<tool_call>", '{"name": "ti')), finished=cut)
    with serving(ScriptedClient(answer, has_tools=True, tool_call_parser="hermes")) as chat:
        response: Any = chat.responses.create(model="gradellm", input="a", tools=TOOLS)
    assert response.status == "incomplete"
    assert [(item.type, item.status) for item in response.output] == [
        ("function_call", "completed"),
        ("message", "incomplete"),
    ]
