"""Requests without `gradellm` are the upstream's: any path below /v1, any method, its bytes."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.upstream.conftest import in_front_of
from server.conftest import RunningServer
from support.http.calls import MESSAGES, connect, post, send
from support.http.server import HttpServer, Received, Reply
from support.upstream.fake_vllm import KEY, FakeVllm


@pytest.fixture
def scripted(server: RunningServer) -> Iterator[tuple[HttpServer, str]]:
    """An upstream whose handler a test sets, and the gateway in front of it."""

    async def nothing(request: Received, reply: Reply) -> None:
        await reply.json({})

    upstream = HttpServer(nothing)
    with in_front_of(upstream.url, server.address, is_compared=False, idle_seconds=1.0) as url:
        yield upstream, url
    upstream.close()


def test_the_answers_bytes_status_and_headers_are_the_upstreams(vllm: FakeVllm, url: str) -> None:
    body = {"model": "any", "messages": MESSAGES, "max_tokens": 4, "tools": [{"unknown": 1}], "seed": 1, "x": [1.50]}
    for stream in (False, True):
        sent = json.dumps({**body, "stream": stream}, indent=2).encode()
        direct = post(f"{vllm.url}/chat/completions", sent)
        passed = post(f"{url}/v1/chat/completions", sent)
        assert passed[0] == direct[0] == 200
        assert passed[2] == direct[2]
        assert passed[1]["content-type"] == direct[1]["Content-Type"]
        assert vllm.received[-1].body == sent


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_every_path_and_method_is_passed_on(vllm: FakeVllm, url: str, method: str) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    headers = {"Authorization": f"Bearer {KEY}", "X-Mine": "a", "Connection": "close, X-Hop", "X-Hop": "b"}
    connection.request(method, "/v1/echo?a=%20b&c", body=b"some bytes", headers=headers)
    answer = connection.getresponse()
    assert (answer.status, answer.headers["X-Own"]) == (418, "yes")
    assert json.loads(answer.read()) == {"method": method, "body": "some bytes"}
    (received,) = [each for each in vllm.received if "echo" in each.target]
    assert received.target == "/v1/echo?a=%20b&c"
    assert received.header("authorization") == f"Bearer {KEY}"
    assert (received.header("x-mine"), received.header("x-hop")) == ("a", None)
    assert received.header("host") == f"127.0.0.1:{vllm.port}"


def test_a_body_is_streamed_through(vllm: FakeVllm, url: str) -> None:
    status, _, said = post(f"{url}/v1/echo", iter([b"one ", b"two"]), {"Content-Type": "text/plain"})
    assert (status, json.loads(said)["body"]) == (418, "one two")


def test_errors_are_the_upstreams(vllm: FakeVllm, url: str) -> None:
    vllm.needs_key = True
    for path in ("models", "chat/completions", "embeddings"):
        status, _, said = send(url, "POST", f"/v1/{path}")
        assert (status, said) == (401, {"error": "Unauthorized"})
    status, _, said = send(url, "GET", "/v1/nothing", {"Authorization": f"Bearer {KEY}"})
    assert (status, said) == (404, {"detail": "Not Found"})


@pytest.mark.parametrize("path", ["/v1/../tokenize", "/v1/%2e%2e/tokenize", "/v1/a/./b", "/v1/a%2F..%2Fb"])
def test_a_path_that_leads_elsewhere_is_not_passed_on(vllm: FakeVllm, url: str, path: str) -> None:
    assert send(url, "POST", path)[0] == 400
    assert vllm.received == []


def test_the_gateways_own_routes_stay(vllm: FakeVllm, url: str) -> None:
    assert send(url, "GET", "/healthz")[2] == {"status": "ok", "explains": True}
    assert send(url, "GET", "/")[0] == 200
    assert send(url, "GET", "/v1/gradellm/info")[2]["upstream"]["tokenizer"] == "same"
    assert send(url, "GET", "/v1/gradellm/nothing")[0] == 404
    assert send(url, "PUT", "/v1/gradellm/attribute")[1]["Allow"] == "POST"


def test_the_own_routes_are_for_those_whom_the_upstream_accepts(vllm: FakeVllm, url: str) -> None:
    vllm.needs_key = True
    for path in ("attribute", "evaluate"):
        assert post(f"{url}/v1/gradellm/{path}", {"messages": MESSAGES})[0] == 401
    assert send(url, "GET", "/v1/gradellm/info")[0] == 401
    assert send(url, "GET", "/v1/gradellm/info", {"Authorization": f"Bearer {KEY}"})[0] == 200


def test_no_upstream() -> None:
    with in_front_of("http://127.0.0.1:1/v1", "127.0.0.1:1", is_compared=False) as url:
        status, headers, said = post(f"{url}/v1/chat/completions", {"messages": MESSAGES})
        assert status == 503
        assert headers["retry-after"] == "1"
        assert "no upstream answers at http://127.0.0.1:1/v1" in json.loads(said)["error"]["message"]
        assert send(url, "GET", "/healthz")[0] == 503
        assert post(f"{url}/v1/chat/completions", {"messages": MESSAGES, "gradellm": {}})[0] == 503


def test_an_upstream_that_sends_nothing_times_out(scripted: tuple[HttpServer, str]) -> None:
    upstream, url = scripted

    async def silent(request: Received, reply: Reply) -> None:
        await asyncio.sleep(30)

    upstream.handler = silent
    status, _, said = post(f"{url}/v1/completions", {})
    assert status == 504
    assert json.loads(said)["error"]["code"] == "upstream_timeout"


def test_an_answer_that_breaks_off_breaks_off(scripted: tuple[HttpServer, str]) -> None:
    upstream, url = scripted

    async def breaking(request: Received, reply: Reply) -> None:
        await reply.begin(200, {"Content-Type": "text/event-stream"})
        await reply.chunk(b"data: 1\n\n")
        reply.break_off()

    upstream.handler = breaking
    with pytest.raises(http.client.IncompleteRead) as raised:
        post(f"{url}/v1/completions", {})
    assert raised.value.partial == b"data: 1\n\n"


def test_no_answer_at_all_is_an_error(scripted: tuple[HttpServer, str]) -> None:
    upstream, url = scripted

    async def closing(request: Received, reply: Reply) -> None:
        reply.break_off()

    upstream.handler = closing
    status, _, said = post(f"{url}/v1/completions", {})
    assert (status, json.loads(said)["error"]["code"]) == (502, "upstream_broke_off")


def test_tokens_are_passed_on_as_they_come(scripted: tuple[HttpServer, str]) -> None:
    upstream, url = scripted
    may_end = asyncio.Event()

    async def waiting(request: Received, reply: Reply) -> None:
        await reply.begin(200, {"Content-Type": "text/event-stream"})
        await reply.chunk(b"data: first\n\n")
        await may_end.wait()
        await reply.end()

    upstream.handler = waiting
    with connect(url) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        said = b""
        while b"first" not in said:
            said += raw.recv(1000)
        upstream._loop.call_soon_threadsafe(may_end.set)


@pytest.mark.parametrize("has_begun", [True, False])
def test_a_disconnect_cancels_the_upstreams_request(scripted: tuple[HttpServer, str], has_begun: bool) -> None:
    upstream, url = scripted

    async def endless(request: Received, reply: Reply) -> None:
        if has_begun:
            await reply.begin(200, {"Content-Type": "text/event-stream"})
            await reply.chunk(b"data: first\n\n")
        await asyncio.sleep(30)

    upstream.handler = endless
    with connect(url) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        wait_for(lambda: any(each.target == "/v1/completions" for each in upstream.received))
        if has_begun:
            raw.recv(1000)
    wait_for(lambda: any(each.target == "/v1/completions" for each in upstream.cancelled), seconds=0.9)


def wait_for(condition: Any, seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()
