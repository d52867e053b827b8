"""Answers of upstreams that are hostile, broken or just others: what their callers see, and what is explained."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from gateway.upstream.conftest import in_front_of
from gradellm_gateway.upstream import followed_answer
from server.conftest import RunningServer
from support.http.calls import MESSAGES, post
from support.http.server import Received, Reply
from support.upstream.fake_vllm import FakeVllm, data_lines

BODY: dict[str, Any] = {"model": "any", "messages": MESSAGES, "max_tokens": 4, "temperature": 0, "gradellm": {}}
Script = Callable[[Received, Reply], Awaitable[None]]
HEAD = {"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def chunk(content: str, ids: Any = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None, "logprobs": None, "token_ids": ids}
    return {**HEAD, "choices": [{**choice, **fields}]}


class Scripted(FakeVllm):
    """A vLLM whose answers to chats with ids are a test's."""

    script: Script | None = None

    async def _handle(self, request: Received, reply: Reply) -> None:
        if self.script is not None and "chat" in request.target:
            await self.script(request, reply)
        else:
            await super()._handle(request, reply)


@pytest.fixture(scope="module")
def hostile(server: RunningServer) -> Iterator[tuple[Scripted, str]]:
    fake = Scripted(server.address)
    with in_front_of(fake.url, server.address, idle_seconds=1.0, wait_seconds=5.0) as url:
        yield fake, url
    fake.close()


async def prompt_of(fake: FakeVllm) -> list[int]:
    return [token.id for token in (await fake._client.tokenize(messages=MESSAGES)).tokens]


def ask(hostile: tuple[Scripted, str], script: Script, **fields: Any) -> tuple[list[Any], Any]:
    """The events of an answer, and what lacks of its explanation."""
    fake, url = hostile
    fake.script = script
    status, _, said = post(f"{url}/v1/chat/completions", {**BODY, "stream": True, **fields})
    assert status == 200
    chunks = data_lines(said)
    lacks = [
        each["gradellm"]["incomplete"]
        for each in chunks
        if "incomplete" in (each.get("gradellm", {}) if isinstance(each, dict) else {})
    ]
    return chunks, lacks[0] if lacks else None


def test_wrong_json_is_passed_on_and_ends_explaining(hostile: tuple[Scripted, str]) -> None:
    async def script(request: Received, reply: Reply) -> None:
        await reply.events(chunk("a"))
        for data in (b"data: {nonsense\n\n", b"data: [1, 2]\n\n", b"data: \xff\n\n", b": ping\n\n"):
            await reply.chunk(data)
        await reply.event(chunk("b"))
        await reply.done()

    fake, url = hostile
    fake.script = script
    _status, _, said = post_bytes(url, {**BODY, "stream": True})
    for data in (b"data: {nonsense\n\n", b"data: [1, 2]\n\n", b"data: \xff\n\n", b": ping\n\n"):
        assert data in said
    assert said.endswith(b"data: [DONE]\n\n")
    assert b'"code":"upstream_malformed"' in said


def post_bytes(url: str, body: Any) -> tuple[int, Any, bytes]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


def test_a_huge_event_is_passed_on_and_ends_explaining(hostile: tuple[Scripted, str]) -> None:
    size = 100 << 20

    async def script(request: Received, reply: Reply) -> None:
        await reply.events(chunk("a"))
        await reply.chunk(b"data: ")
        for _ in range(100):
            await reply.chunk(b"~" * (1 << 20))
        await reply.chunk(b"\n\n")
        await reply.event(chunk("b"))
        await reply.done()

    fake, url = hostile
    fake.script = script
    _status, _, said = post_bytes(url, {**BODY, "stream": True})
    assert said.count(b"~") == size
    assert said.endswith(b"data: [DONE]\n\n")
    assert b"more than 8 MiB" in said[-2000:]


def test_half_an_event_is_left_out(hostile: tuple[Scripted, str]) -> None:
    async def script(request: Received, reply: Reply) -> None:
        await reply.events(chunk("a"))
        await reply.chunk(b'data: {"id": "a", "cho')
        await reply.end()

    chunks, lacks = ask(hostile, script)
    assert lacks["code"] == "upstream_broke_off"
    assert chunks[0]["choices"][0]["delta"]["content"] == "a"
    assert len(chunks) == 2


def test_ids_of_another_text_are_told(hostile: tuple[Scripted, str]) -> None:
    fake, _ = hostile

    async def script(request: Received, reply: Reply) -> None:
        ids = [token.id for token in (await fake._client.tokenize(" red ball")).tokens]
        await reply.events({**chunk(""), "prompt_token_ids": await prompt_of(fake)})
        await reply.event(chunk("Something else", ids))
        await reply.done()

    _chunks, lacks = ask(hostile, script)
    assert lacks["code"] == "other_text"
    assert lacks["explained_tokens"] > 0


@pytest.mark.parametrize("ids", [[1 << 30], ["x"], [-1], {"a": 1}])
def test_ids_that_are_none_end_explaining(hostile: tuple[Scripted, str], ids: Any) -> None:
    fake, _ = hostile

    async def script(request: Received, reply: Reply) -> None:
        await reply.events({**chunk(""), "prompt_token_ids": await prompt_of(fake)})
        await reply.event(chunk("a", ids))
        await reply.event(chunk("b", [5]))
        await reply.done()

    chunks, lacks = ask(hostile, script)
    assert lacks["code"] in ("upstream_malformed", "refused")
    passed = [each for each in chunks[:-1] if "gradellm" not in each]
    assert [each["choices"][0]["delta"]["content"] for each in passed] == ["", "a", "b"]
    assert chunks[-1] == "[DONE]"


def test_ids_without_those_of_the_prompt(hostile: tuple[Scripted, str]) -> None:
    async def script(request: Received, reply: Reply) -> None:
        await reply.events(chunk("a", [5]))
        await reply.done()

    assert "none of the prompt" in ask(hostile, script)[1]["message"]


def test_ids_that_cease(hostile: tuple[Scripted, str]) -> None:
    fake, _ = hostile

    async def script(request: Received, reply: Reply) -> None:
        await reply.events({**chunk(""), "prompt_token_ids": await prompt_of(fake)})
        await reply.event(chunk("a", [5]))
        await reply.event(chunk("b"))
        await reply.done()

    assert ask(hostile, script)[1]["code"] == "ids_missing"


def test_an_error_event_is_the_upstreams(hostile: tuple[Scripted, str]) -> None:
    error = {"error": {"message": "engine died", "type": "InternalServerError", "code": 500}}

    async def script(request: Received, reply: Reply) -> None:
        await reply.events(chunk("a"), error)
        await reply.done()

    chunks, lacks = ask(hostile, script)
    assert error in chunks
    assert lacks["code"] == "upstream_error"


def test_an_upstream_that_falls_silent_is_an_error_event(hostile: tuple[Scripted, str]) -> None:
    async def script(request: Received, reply: Reply) -> None:
        await reply.events(chunk("a"))
        await asyncio.sleep(30)

    fake, url = hostile
    fake.script = script
    with pytest.raises(http.client.IncompleteRead) as raised:
        post(f"{url}/v1/chat/completions", {**BODY, "stream": True})
    *_, last = data_lines(raised.value.partial.decode())
    assert last["error"]["code"] == "upstream_timeout"


@pytest.mark.parametrize("is_streamed", [True, False])
def test_an_answer_of_another_kind_is_passed_on(hostile: tuple[Scripted, str], is_streamed: bool) -> None:
    async def script(request: Received, reply: Reply) -> None:
        await reply.begin(200, {"Content-Type": "text/html"})
        await reply.chunk(b"<p>Maintenance</p>")
        await reply.end()

    fake, url = hostile
    fake.script = script
    assert post(f"{url}/v1/chat/completions", {**BODY, "stream": is_streamed})[2] == "<p>Maintenance</p>"


@pytest.mark.parametrize("body", [b"{nonsense", b"[]", b'{"choices": [3]}', b"{}"])
def test_a_whole_answer_that_is_none_is_passed_on(hostile: tuple[Scripted, str], body: bytes) -> None:
    async def script(request: Received, reply: Reply) -> None:
        await reply.begin(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        await reply.raw(body)

    fake, url = hostile
    fake.script = script
    status, headers, said = post(f"{url}/v1/chat/completions", BODY)
    assert (status, said.encode()) == (200, body)
    assert "answer of the upstream" in headers["gradellm-incomplete"]


def test_a_huge_whole_answer_is_passed_on(hostile: tuple[Scripted, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed_answer, "MAX_ANSWER_BYTES", 1000)
    body = json.dumps({"choices": [], "x": "y" * 100_000}).encode()

    async def script(request: Received, reply: Reply) -> None:
        await reply.begin(200, {"Content-Type": "application/json"})
        for start in range(0, len(body), 500):
            await reply.chunk(body[start : start + 500])
        await reply.end()

    fake, url = hostile
    fake.script = script
    _status, headers, said = post(f"{url}/v1/chat/completions", BODY)
    assert said.encode() == body
    assert "32 MiB" in headers["gradellm-incomplete"]


def test_a_tool_call_whose_chunks_are_ids_only(hostile: tuple[Scripted, str]) -> None:
    fake, _ = hostile
    call = {"index": 0, "delta": {"tool_calls": [{"index": 0}]}, "finish_reason": "tool_calls", "logprobs": None}

    async def script(request: Received, reply: Reply) -> None:
        ids = [token.id for token in (await fake._client.tokenize(" red ball")).tokens]
        await reply.events({**chunk(""), "prompt_token_ids": await prompt_of(fake)})
        await reply.event(chunk("", ids[:1], delta={}))
        await reply.event({**HEAD, "choices": [{**call, "token_ids": ids[1:]}]})
        await reply.done()

    chunks, lacks = ask(hostile, script)
    assert lacks is None
    assert [each for each in chunks[:-1] if "gradellm" not in each] == [
        {**chunk(""), "prompt_token_ids": None},
        {**HEAD, "choices": [{**call, "token_ids": None}]},
    ]
    assert (
        len([each for each in chunks if "attribution" in (each.get("gradellm", {}) if isinstance(each, dict) else {})])
        > 0
    )
