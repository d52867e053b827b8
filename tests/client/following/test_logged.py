"""What of a logged answer can be explained; `tests/client/cli/commands/test_follow.py` explains logs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from client.conftest import FakeServer
from gradellm import Client, InvalidRequestError
from gradellm.following.logged import logged_answers
from gradellm.v1 import explainer_pb2 as pb

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "time"}}


def choice(**fields: Any) -> dict[str, Any]:
    logprobs = {"content": [{"logprob": -0.5}, {"logprob": -1.5}]}
    return {"index": 0, "message": {"content": "ab"}, "token_ids": [5, 6], "logprobs": logprobs, **fields}


def test_ids_of_the_answer(fake: FakeServer) -> None:
    record = {
        "request": CHAT,
        "response": {"prompt_token_ids": [1, 2], "choices": [choice(), choice(index=1, token_ids=[7, 8])]},
    }
    with Client(fake.target) as client:
        answers = list(logged_answers(record, {"upstream_dtype": "float32"}))
        assert [answer.choice for answer in answers] == [0, 1]
        assert [token.id for token in answers[1].explain(client).tokens] == [7, 8]
    start, append, _ = fake.followed
    assert list(start.start.input.prompt_ids) == [1, 2]  # what was read, not what would be rendered
    assert list(append.append.logprobs) == [-0.5, -1.5]


def test_masked_logprobs_are_not_compared(fake: FakeServer) -> None:
    request = {**CHAT, "response_format": {"type": "json_schema"}}
    (answer,) = logged_answers({"request": request, "response": {"prompt_token_ids": [1], "choices": [choice()]}}, {})
    with Client(fake.target) as client:
        answer.explain(client)
    assert all(logprob != logprob for logprob in fake.followed[1].append.logprobs)


def test_a_streamed_answer(fake: FakeServer) -> None:
    chunks = [
        {"prompt_token_ids": [1], "choices": [{"index": 0, "delta": {"content": "a"}, "token_ids": [5]}]},
        {"choices": [{"index": 0, "delta": {"content": "b"}, "token_ids": [6]}]},
        {"choices": [], "usage": {}},
    ]
    (answer,) = logged_answers({"request": CHAT, "response": chunks}, {})
    with Client(fake.target) as client:
        assert [token.id for token in answer.explain(client).tokens] == [5, 6]


def test_a_text(fake: FakeServer) -> None:
    response = {"choices": [{"index": 0, "message": {"content": "Hello"}}]}
    (answer,) = logged_answers({"request": CHAT, "response": response}, {})
    assert not answer.tells_ids
    with Client(fake.target) as client:
        answer.explain(client)
        (raw,) = logged_answers({"request": {"prompt": "Once"}, "response": {"choices": [{"text": " upon"}]}}, {})
        raw.explain(client)
    chat, completion = fake.requests
    assert chat.completion == "Hello"  # type: ignore[attr-defined]
    assert completion.input.prompt == "Once"  # type: ignore[attr-defined]
    (unknown,) = logged_answers({"request": {}, "response": response}, {})
    with Client(fake.target) as client, pytest.raises(InvalidRequestError, match=r"request\.messages: are missing"):
        unknown.explain(client)


def test_tools_and_options_of_the_chat_template(fake: FakeServer) -> None:
    """The prompt is rendered again with them where the answer has no ids of it, and not where it has."""
    request = {**CHAT, "tools": [TOOL], "chat_template_kwargs": {"enable_thinking": False}}
    text, ids = {"choices": [{"message": {"content": "a"}}]}, {"choices": [choice()]}
    fake.has_tools = True
    with Client(fake.target) as client:
        for response in (text, ids, {"prompt_token_ids": [1], **ids}, {"prompt_token_ids": [1], **text}):
            (answer,) = logged_answers({"request": request, "response": response}, {})
            answer.explain(client)
    attributed, read = (each.input for each in fake.requests if isinstance(each, pb.AttributeRequest))
    followed, told = (each.start.input for each in fake.followed if each.HasField("start"))
    for rendered in (attributed, followed):
        assert json.loads(rendered.tools) == [TOOL]
        assert json.loads(rendered.chat_template_kwargs) == {"enable_thinking": False}
    for each in (read, told):
        assert list(each.prompt_ids) == [1]
        assert (each.tools, each.chat_template_kwargs, list(each.messages)) == ("", "", [])


def test_tools_that_the_chat_template_ignores(fake: FakeServer) -> None:
    record = {"request": {**CHAT, "tools": [TOOL]}, "response": {"choices": [{"message": {"content": "a"}}]}}
    (answer,) = logged_answers(record, {})
    with Client(fake.target) as client:
        answer.explain(client)
    (request,) = (each for each in fake.requests if isinstance(each, pb.AttributeRequest))
    assert not request.input.tools


@pytest.mark.parametrize(
    ("request_", "message", "field"),
    [
        ({"chat_template": "x"}, {"content": "a"}, "request.chat_template"),
        ({"tools": [TOOL]}, {"content": None, "tool_calls": [{}]}, "choices[0].message.tool_calls"),
        ({}, {"content": "a", "reasoning": "Hm."}, "choices[0].message.reasoning"),
    ],
)
def test_what_cannot_be_made_again(
    fake: FakeServer, request_: dict[str, Any], message: dict[str, Any], field: str
) -> None:
    record: dict[str, Any] = {"request": {**CHAT, **request_}, "response": {"choices": [{"message": message}]}}
    (answer,) = logged_answers(record, {})
    with Client(fake.target) as client:
        with pytest.raises(InvalidRequestError) as raised:
            answer.explain(client)
        assert raised.value.violations[0].field == field
        record["response"] = {"prompt_token_ids": [1], "choices": [choice(message=message)]}
        (answer,) = logged_answers(record, {})
        assert [token.id for token in answer.explain(client).tokens] == [5, 6]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "must be an object"),
        ({"request": {}}, "must be an object"),
        ({"request": [], "response": {}}, "request must be an object"),
        ({"request": {}, "response": []}, "request must be an object"),
        ({"request": {}, "response": {"output": []}}, "the response has no choices"),
        ({"request": {}, "response": {"error": {"message": "too long"}}}, "the response is an error: .*too long"),
    ],
)
def test_other_records(record: object, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        list(logged_answers(record, {}))
