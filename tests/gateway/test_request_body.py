"""Bodies that are not JSON or too large."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from gradellm_gateway.request_body import MAX_BODY_BYTES
from support.http.calls import connect, post


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"messages": ' + b"[" * 5000,
        b'{"seed": ' + b"1" * 5000 + b"}",
        b'{"top_p": NaN}',
        b'{"top_p": -Infinity}',
    ],
)
@pytest.mark.parametrize("path", ["chat/completions", "gradellm/attribute", "gradellm/evaluate"])
def test_invalid_bodies_are_refused(url: str, path: str, body: bytes) -> None:
    status, _, answer = post(f"{url}/v1/{path}", body)
    assert status == 400
    assert json.loads(answer)["error"]["message"].startswith("the request ")


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
