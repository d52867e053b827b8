"""What is read of the chunks of other servers; `tests/server/rpc/clients/test_follow.py` explains them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from client.conftest import FakeServer
from gradellm import AsyncClient, Client, InvalidRequestError

CHUNKS: list[dict[str, Any]] = [
    {"prompt_token_ids": [1, 2], "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
    {
        "choices": [
            {
                "index": 0,
                "delta": {"content": "ab"},
                "token_ids": [5, 6],
                "logprobs": {"content": [{"logprob": -0.5, "top_logprobs": [{"logprob": -2.5}]}, {"logprob": -1.5}]},
            },
            {"index": 1, "delta": {"content": "no"}, "token_ids": [9]},
        ]
    },
    {"choices": [{"index": 0, "delta": {"content": "c"}, "token_ids": [7], "logprobs": None}]},
    {"choices": [], "usage": {}},
]
COMPLETIONS: list[dict[str, Any]] = [
    {
        "choices": [
            {
                "index": 0,
                "text": "ab",
                "prompt_token_ids": [1],
                "token_ids": [5],
                "logprobs": {"token_logprobs": [-2.0]},
            }
        ]
    }
]


def test_ids_and_logprobs(fake: FakeServer) -> None:
    with Client(fake.target) as client:
        items = list(client.follow_openai(CHUNKS))
    assert [item.chunk for item in items if item.chunk is not None] == CHUNKS
    start = fake.followed[0].start
    assert list(start.input.prompt_ids) == [1, 2]
    appended = [request.append for request in fake.followed if request.HasField("append")]
    assert [token_id for append in appended for token_id in append.ids] == [5, 6, 7]
    logprobs = [logprob for append in appended for logprob in append.logprobs]
    assert logprobs[:2] == [-0.5, -1.5]
    assert logprobs[2] != logprobs[2]  # NaN: it was not told
    assert next(value for append in appended for value in append.alternative_logprobs) == -2.5


def test_of_the_older_api(fake: FakeServer) -> None:
    with Client(fake.target) as client:
        list(client.follow_openai(COMPLETIONS))
    assert list(fake.followed[0].start.input.prompt_ids) == [1]
    assert list(fake.followed[1].append.logprobs) == [-2.0]


def test_a_text_without_ids(fake: FakeServer) -> None:
    chunks = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in ("Hello", " there")]
    with Client(fake.target) as client:
        list(client.follow_openai(chunks, messages=[("user", "Hi")], upstream_dtype="int4"))
        with pytest.raises(InvalidRequestError, match="messages: are needed"):
            list(client.follow_openai(chunks))
    (request,) = fake.requests
    assert request.completion == "Hello there"  # type: ignore[attr-defined]


def test_a_prompt_that_the_server_tells_takes_the_place_of_tools(fake: FakeServer) -> None:
    options: dict[str, Any] = {"tools": [{"type": "function"}], "chat_template_kwargs": {"enable_thinking": False}}
    with Client(fake.target) as client:
        list(client.follow_openai(CHUNKS, messages=[("user", "Hi")], **options))
    sent = fake.followed[0].start.input
    assert list(sent.prompt_ids) == [1, 2]
    assert (sent.tools, sent.chat_template_kwargs) == ("", "")


@pytest.mark.parametrize("delta", [{"content": "a", "reasoning": "Hm."}, {"tool_calls": [{}]}])
def test_an_answer_of_which_the_text_is_not_told(fake: FakeServer, delta: dict[str, Any]) -> None:
    chunks = [{"choices": [{"index": 0, "delta": delta}]}]
    with (
        Client(fake.target) as client,
        pytest.raises(InvalidRequestError, match="is not the text that the model wrote"),
    ):
        list(client.follow_openai(chunks, messages=[("user", "Hi")]))
    assert fake.requests == []


def test_no_answer(fake: FakeServer) -> None:
    with Client(fake.target) as client:
        assert [item.event for item in client.follow_openai([{"choices": []}])] == [None]


def test_asynchronous(fake: FakeServer) -> None:
    async def coming() -> AsyncIterator[Any]:
        for chunk in CHUNKS:
            yield chunk

    async def collect() -> list[Any]:
        async with AsyncClient(fake.target) as client:
            return [item async for item in client.follow_openai(coming())]

    items = asyncio.run(collect())
    assert [item.chunk for item in items if item.chunk is not None] == CHUNKS
    assert items[-1].event.finished is not None
