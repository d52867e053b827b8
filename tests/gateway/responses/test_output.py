"""Items of a response, and their events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradellm.models import Token
from gradellm.parsers.deltas import Delta
from gradellm_gateway.responses.output import Output


def logprobs(tokens: Sequence[Token]) -> list[dict[str, Any]]:
    return [{"token": token.text} for token in tokens]


def token(text: str) -> Token:
    return Token(0, 7, text, 0, 0, -1.0, (), not text, None)


def output() -> Output:
    return Output("r", lambda: "call_1", logprobs)


def test_every_item_begins_and_ends() -> None:
    made = output()
    events = made.add([Delta("reasoning", "Hm.")], [token("Hm.")])
    events += made.add([Delta("content", "I look.")], [token("I look.")])
    events += made.add([Delta("name", "time", 0), Delta("arguments", '{"a":', 0)])
    events += made.add([Delta("arguments", " 1}", 0)])
    events += made.finish("completed")
    begin, end = ["output_item.added"], ["output_item.done"]
    assert [event["type"].removeprefix("response.") for event in events] == [
        *(*begin, "content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done", *end),
        *(*begin, "content_part.added", "output_text.delta", "output_text.done", "content_part.done", *end),
        *(*begin, *["function_call_arguments.delta"] * 2, "function_call_arguments.done", *end),
    ]
    assert [event["output_index"] for event in events] == [0] * 6 + [1] * 6 + [2] * 5
    thought, said, call = made.items
    assert thought["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert said["content"][0]["text"] == "I look."
    assert said["content"][0]["logprobs"] == [{"token": "I look."}]
    assert (call["call_id"], call["name"], call["arguments"]) == ("call_1", "time", '{"a": 1}')
    assert {item["status"] for item in made.items} == {"completed"}
    assert [item["id"] for item in made.items] == ["rs_r_0", "msg_r_1", "fc_r_2"]
    assert [event["item"] for event in events if event["type"].endswith("item.done")] == made.items


def test_an_empty_response_has_an_empty_text() -> None:
    made = output()
    made.finish("completed")
    assert [part["text"] for part in made.items[0]["content"]] == [""]


def test_a_response_that_is_cut_off() -> None:
    made = output()
    made.add([Delta("name", "time", 0), Delta("arguments", "{", 0)])
    made.finish("incomplete")
    assert made.items[0]["status"] == "incomplete"
    malformed = output()
    malformed.add([Delta("name", "time", 0), Delta("arguments", "{]", 0)])
    malformed.finish("completed")
    assert malformed.items[0]["status"] == "incomplete"


def test_log_probabilities_of_text_that_was_held_back() -> None:
    made = output()
    assert made.add([], [token("<tool")]) == []
    events = made.add([Delta("content", "<tool box")], [token(" box")])
    assert events[-1]["logprobs"] == [{"token": "<tool"}, {"token": " box"}]
    assert made.add([], [token("")]) == []
    assert made.finish("completed")[0]["logprobs"] == [{"token": ""}]
    assert len(made.items[0]["content"][0]["logprobs"]) == 3
    called = output()
    called.add([], [token("<tool_call>")])
    called.add([Delta("name", "time", 0)], [token("time")])
    events = called.add([Delta("content", "So.")], [token("So.")])
    assert events[-1]["logprobs"] == [{"token": "So."}]
