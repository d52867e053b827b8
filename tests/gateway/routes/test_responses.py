"""The Responses API, called by OpenAI's own client and by plain HTTP."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from gradellm import Client, Explanation
from server.conftest import RunningServer
from support.http.calls import MESSAGES, post

QUESTION = MESSAGES[0]["content"]
TOOLS: Any = [{"type": "function", "name": "f"}]
CALL = {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"}
INCLUDE: Any = ["message.output_text.logprobs"]


def undisturbed(server: RunningServer, messages: Any = MESSAGES, **keywords: Any) -> Explanation:
    with Client(server.address) as client:
        return client.explain(messages=messages, **keywords)


def test_a_response(client: openai.OpenAI, server: RunningServer) -> None:
    expected = undisturbed(server, max_new_tokens=5, attribution=None, num_alternatives=2)
    answer = client.responses.create(
        model="gradellm", input=QUESTION, max_output_tokens=5, include=INCLUDE, top_logprobs=2, store=False
    )
    assert answer.output_text == expected.text
    assert answer.id.startswith("resp_")
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None
    assert answer.usage.input_tokens == len(expected.prompt_tokens)
    assert answer.usage.output_tokens == 5
    item: Any = answer.output[0]
    (part,) = item.content
    assert [each.logprob for each in part.logprobs] == pytest.approx([token.logprob for token in expected.tokens])
    assert all(len(each.top_logprobs) == 2 for each in part.logprobs)


def test_events_come_in_openais_order(client: openai.OpenAI, server: RunningServer) -> None:
    expected = undisturbed(server, max_new_tokens=4, attribution=None)
    events: list[Any] = list(client.responses.create(model="", input=QUESTION, max_output_tokens=4, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type.removeprefix("response.") for event in events] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * sum(bool(token.text) for token in expected.tokens),
        *("output_text.done", "content_part.done", "output_item.done", "incomplete"),
    ]
    assert "".join(event.delta for event in events if event.type.endswith("delta")) == expected.text
    assert events[-1].response.output_text == expected.text
    assert events[0].response.status == "in_progress"
    with client.responses.stream(model="", input=QUESTION, max_output_tokens=4) as stream:
        for _ in stream:
            pass
        # The helper has a final response of completed streams alone.


def test_a_completed_response(client: openai.OpenAI, server: RunningServer) -> None:
    stop = undisturbed(server, max_new_tokens=8, attribution=None).text[4:6]
    with client.responses.stream(model="", input=QUESTION, extra_body={"stop": stop}) as stream:
        final = [event.type for event in stream][-1]
        answer = stream.get_final_response()
    assert final == "response.completed"
    assert (answer.status, answer.incomplete_details) == ("completed", None)
    assert (
        answer.output_text == client.responses.create(model="", input=QUESTION, extra_body={"stop": stop}).output_text
    )


def test_items_instructions_and_earlier_responses(client: openai.OpenAI, server: RunningServer) -> None:
    first = client.responses.create(model="", input=QUESTION, instructions="Be brief.", max_output_tokens=3)
    conversation: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTION},
    ]
    assert first.output_text == undisturbed(server, conversation, max_new_tokens=3, attribution=None).text
    items: Any = [
        {"role": "user", "content": QUESTION},
        *(item.model_dump() for item in first.output),
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "And then?"}]},
    ]
    second = client.responses.create(model="", input=items, instructions="Be brief.", max_output_tokens=3)
    conversation += [{"role": "assistant", "content": first.output_text}, {"role": "user", "content": "And then?"}]
    assert second.output_text == undisturbed(server, conversation, max_new_tokens=3, attribution=None).text


def test_a_response_is_explained_like_a_chat(url: str, server: RunningServer) -> None:
    expected = undisturbed(server, max_new_tokens=3)
    body = {"input": QUESTION, "max_output_tokens": 3, "gradellm": {}}
    answer = json.loads(post(f"{url}/v1/responses", body)[2])
    found = Explanation.from_json(json.dumps(answer["gradellm"]))
    assert [list(row) for row in found.scores] == [pytest.approx(row, abs=1e-6) for row in expected.scores]
    said = post(f"{url}/v1/responses", {**body, "stream": True})[2]
    events = [json.loads(line.removeprefix("data: ")) for line in said.split("\n") if line.startswith("data: ")]
    own = [event["gradellm"] for event in events if event["type"] == "response.gradellm"]
    assert [each["attribution"]["scores"] for each in own if "attribution" in each] == [
        pytest.approx(row, abs=1e-6) for row in expected.scores
    ]
    assert events[-1]["type"] == "response.incomplete"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": 3}, "input"),
        ({"input": []}, "input"),
        ({"input": [3]}, "input[0]"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "robot", "content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": "a"}, {"type": "web_search_call"}]}, "input[1].type"),
        ({"input": [{"role": "user", "content": "a"}, {"type": "function_call"}]}, "input[1].name"),
        ({"input": [{"role": "user", "content": "a"}, CALL]}, "input[1]"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": "a", "name": "b"}], "instructions": "c"}, "input[0].name"),
        ({"input": "a", "instructions": 3}, "instructions"),
        ({"input": "a", "store": True}, "store"),
        ({"input": "a", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "a", "conversation": "conv_1"}, "conversation"),
        ({"input": "a", "background": True}, "background"),
        ({"input": "a", "tools": [{"type": "function"}]}, "tools[0].name"),
        ({"input": "a", "tools": [{"type": "function", "name": "f", "defer_loading": True}]}, "tools[0].defer_loading"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "a", "tool_choice": "required"}, "tool_choice"),
        ({"input": "a", "tools": TOOLS, "tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name"),
        ({"input": "a", "tools": TOOLS, "tool_choice": "required"}, "tool_choice"),  # the template has none
        ({"input": "a", "max_tool_calls": 1}, "max_tool_calls"),
        ({"input": "a", "text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"input": "a", "text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"input": "a", "text": {"format": {"type": "json_schema", "schema": {"not": {}}}}}, "text.format.schema"),
        ({"input": "a", "text": {"format": {"type": "json_schema", "schema": {}, "x": 1}}}, "text.format.x"),
        ({"input": "a", "text": {"verbosity": "low"}}, "text.verbosity"),
        ({"input": "a", "text": {"colour": 1}}, "text.colour"),
        (
            {"input": "a", "text": {"format": {"type": "json_object"}}, "structured_outputs": {"regex": "a"}},
            "structured_outputs",
        ),
        (
            {"input": "a", "tools": TOOLS, "tool_choice": "required", "structured_outputs": {"regex": "a"}},
            "tool_choice",
        ),
        ({"input": "a", "include": ["reasoning.encrypted_content"]}, "include[0]"),
        ({"input": "a", "top_logprobs": 2}, "top_logprobs"),
        ({"input": "a", "top_logprobs": 21, "include": INCLUDE}, "top_logprobs"),
        ({"input": "a", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "a", "temperature": -1}, "temperature"),
        ({"input": "a", "colour": 1}, "colour"),
        ({"input": "a" * 9000}, "input"),
        ({"input": "a", "gradellm": {"method": "nope"}}, "gradellm.method"),
        ({"input": "a", "gradellm": {"pictures": True}}, "gradellm.pictures"),
    ],
)
def test_requests_that_cannot_be_are_refused_by_field(url: str, body: Any, param: str) -> None:
    status, _, said = post(f"{url}/v1/responses", body)
    assert status == 400, said
    error = json.loads(said)["error"]
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")
