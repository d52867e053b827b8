"""The upstream's URL, and its failures as errors with a status."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gradellm import InvalidRequestError
from gradellm_gateway.upstream.connection import Timeouts, Upstream, UpstreamError
from support.http.proxy import FakeProxy, proxy
from support.http.server import HttpServer, Received, Reply

__all__ = ["proxy"]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://a/v1",
        "http://",
        "http://a:b/v1",
        "http://user:key@a/v1",  # pragma: allowlist secret (made up)
        "http://a/v1?b",
        "http://a/v1#b",
    ],
)
def test_urls_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="upstream: "):
        Upstream(url)


def call(upstream: Upstream, *arguments: Any) -> Any:
    async def run() -> Any:
        try:
            return await upstream.call(*arguments)
        finally:
            await upstream.close()

    return asyncio.run(run())


def test_no_proxy_no_redirect_no_cookie(request: pytest.FixtureRequest) -> None:
    async def redirecting(request: Received, reply: Reply) -> None:
        await reply.json({"a": 1}, 307, {"Location": "/elsewhere", "Set-Cookie": "a=b"})

    fake: FakeProxy = request.getfixturevalue("proxy")
    server = HttpServer(redirecting)
    upstream = Upstream(server.url, token="mine")

    async def twice() -> Any:
        await upstream.call("GET", "/models")
        return await upstream.call("POST", "/x", {"b": 2}), await upstream.beside().call("GET", "/tokenize")

    assert asyncio.run(twice()) == ((307, {"a": 1}), (307, {"a": 1}))
    assert [each.target for each in server.received] == ["/v1/models", "/v1/x", "/tokenize"]
    assert {each.header("authorization") for each in server.received} == {"Bearer mine"}
    assert {each.header("cookie") for each in server.received} == {None}
    assert fake.heard == []
    server.close()


def test_an_answer_that_is_no_json() -> None:
    async def text(request: Received, reply: Reply) -> None:
        await reply.begin(200)
        await reply.chunk(b"{")
        await reply.end()

    server = HttpServer(text)
    assert call(Upstream(server.url), "GET", "/models") == (200, None)
    server.close()


async def silent(request: Received, reply: Reply) -> None:
    await asyncio.sleep(20)


async def breaking(request: Received, reply: Reply) -> None:
    await reply.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
    reply.break_off()


async def nonsense(request: Received, reply: Reply) -> None:
    await reply.raw(b"SSH-2.0-OpenSSH\r\n\r\n")
    reply.break_off()


@pytest.mark.parametrize(
    ("handler", "status", "code"),
    [(silent, 504, "upstream_timeout"), (breaking, 502, "upstream_broke_off"), (nonsense, 502, "upstream_broke_off")],
)
def test_failures_have_a_status(handler: Any, status: int, code: str) -> None:
    server = HttpServer(handler)
    with pytest.raises(UpstreamError) as raised:
        call(Upstream(server.url, timeouts=Timeouts(1.0, 0.3)), "GET", "/models")
    assert (raised.value.status, raised.value.code) == (status, code)
    assert server.url in str(raised.value)
    server.close()


def test_no_server_is_unavailable() -> None:
    with pytest.raises(UpstreamError, match=r"no upstream answers at http://127\.0\.0\.1:1/v1") as raised:
        call(Upstream("http://127.0.0.1:1/v1/"), "GET", "/models")
    assert raised.value.status == 503
