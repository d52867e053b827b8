"""Bodies that are not JSON or too large."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.requests import Request

from gradellm_gateway.request_body import LARGE_BODY_BYTES, MAX_BODY_BYTES, converted, read_json
from support.http.calls import connect, post


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 5000,
        b"NaN",
        b"1" * 5000,
    ],
)
@pytest.mark.parametrize("path", ["chat/completions", "gradellm/attribute", "gradellm/evaluate"])
def test_invalid_bodies_are_refused(url: str, path: str, body: bytes) -> None:
    status, _, answer = post(f"{url}/v1/{path}", body)
    assert status == 400
    assert json.loads(answer)["error"]["message"].startswith("the request ")


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b'{"top_p": NaN}', "top_p", "NaN is not a JSON number"),
        (b'{"logit_bias": {"5": -Infinity}}', "logit_bias.5", "-Infinity is not a JSON number"),
        (b'{"messages": [{"role": "user"}, {"content": [NaN]}]}', "messages[1].content[0]", "NaN"),
        (b'{"seed": ' + b"1" * 5000 + b"}", "seed", "5,000 digits; the limit is 4,300: shorten it"),
        (b'{"seed": [[-' + b"1" * 5000 + b"]]}", "seed[0][0]", "digits; the limit is 4,300"),
        (b'{"stop_token_ids": [' + b"0," * 1_000_000 + b"NaN]}", "stop_token_ids[1000000]", "NaN"),
        (b'{"messages": ' + b"[" * 5000, "messages", "nested deeper than 64 levels, which is the limit"),
        (b'{"a]": {"b": [1]}, "t\\u00f6\\"ols": [{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}]}", 'tö"ols', "64"),
    ],
)
@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses", "gradellm/attribute"])
def test_what_json_does_not_have_is_refused_by_field(url: str, path: str, body: bytes, param: str, words: str) -> None:
    status, _, answer = post(f"{url}/v1/{path}", body)
    error = json.loads(answer)["error"]
    assert (status, error["param"]) == (400, param)
    assert error["message"].startswith(f"{param}: ")
    assert words in error["message"]


def test_large_requests_are_converted_in_a_thread() -> None:
    async def read(body: bytes) -> tuple[bool, Any]:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        headers = [(b"content-type", b"application/json")]
        value = await read_json(Request({"type": "http", "headers": headers}, receive))
        return await converted(threading.current_thread) is threading.current_thread(), value

    assert asyncio.run(read(b"[1]")) == (True, [1])
    is_same, value = asyncio.run(read(b"[1" + b" " * LARGE_BODY_BYTES + b"]"))
    assert (is_same, value) == (False, [1])


def chunked(*parts: bytes) -> Iterator[bytes]:
    yield from parts


def test_a_request_that_is_too_large_is_refused(url: str) -> None:
    for body in (b"x" * (MAX_BODY_BYTES + 1), chunked(*[b"x" * (1 << 20)] * 9)):
        status, _, answer = post(f"{url}/v1/chat/completions", body)
        assert status == 413
        assert json.loads(answer)["error"]["code"] == "request_too_large"


def test_the_length_of_a_request_is_enough_to_refuse_it(url: str) -> None:
    with connect(url) as raw:
        raw.sendall(head("Content-Length: 9000000", "Expect: 100-continue"))
        assert raw.recv(100).startswith(b"HTTP/1.1 413 ")


def head(*headers: str) -> bytes:
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", "Content-Type: application/json", *headers, "", ""]
    return "\r\n".join(lines).encode()
