"""Expensive requests over HTTP: each ends soon, refused by the caller's field or answered; other streams go on."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator

import pytest

from gateway.conftest import running
from server.conftest import RunningServer, demo
from support.http.calls import post

__all__ = ["demo"]

SECONDS = 4.0  # twice what is wanted: other tests may run beside this one
DEEP = "[" * 100_000 + "]" * 100_000
CHAT, TEXTS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
BASES: dict[str, str] = {
    CHAT: '"messages": [{"role": "user", "content": "Once"}], "max_tokens": 4',
    TEXTS: '"prompt": "Once", "max_tokens": 4',
    RESPONSES: '"input": "Once", "max_output_tokens": 4',
    "/tokenize": '"return_token_strs": null, "messages": [{"role": "user", "content": "Once"}]',
    "/detokenize": '"model": null',
}
SCHEMAS = {
    "to itself": {"$ref": "#"},
    "in a circle": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "recursive": {"$defs": {"n": {"properties": {"a": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"},
    "of 1 MB": {"type": "object", "description": "x" * (1 << 20)},
    "of 12,000 branches": {"anyOf": [{"const": i} for i in range(12_000)]},
    "of 10,000 values": {"enum": [f"value {i}" for i in range(10_000)]},
    "of a repetition": {"type": "string", "pattern": "^(a{1,1000}){1,1000}$"},
    "of 900 levels": json.loads('{"items":' * 900 + "{}" + "}" * 900),
}


def cases() -> Iterator[tuple[str, str, str]]:
    """Route, the fields' JSON, and the field that the refusal names; empty where there may be an answer."""
    for route in (CHAT, TEXTS, RESPONSES):
        yield route, '"logit_bias": {"5": NaN}', "logit_bias.5"
        yield route, '"logit_bias": {"5": 1e999}', "logit_bias.5"
        yield route, f'"logit_bias": {json.dumps(dict.fromkeys(range(100_000), 1))}', "logit_bias"
        yield route, f'"stop": {json.dumps([str(i) for i in range(100_000)])}', "stop"
        yield route, f'"stop_token_ids": {json.dumps(list(range(1_000_000)))}', "stop_token_ids"
        yield route, f'"seed": {"9" * 100_000}', "seed"
        yield route, f'"x": {DEEP}', "x"
        yield route, f'"gradellm": {{"segments": {DEEP}}}', "gradellm"
        yield route, '"structured_outputs": {"regex": "(a{1,1000}){1,1000}"}', ""
        yield route, f'"structured_outputs": {{"json": {DEEP}}}', "structured_outputs"
        yield route, f'"structured_outputs": {{"choice": {json.dumps(["a"] * 100_000)}}}', "structured_outputs.choice"
        yield route, '"n": 1000000', "n"
        for schema in SCHEMAS.values():
            yield route, f'"structured_outputs": {{"json": {json.dumps(schema)}}}', ""
    for route in (CHAT, "/tokenize"):
        for name in ("messages", "tools", "conversation", "tokenize"):
            yield route, f'"chat_template_kwargs": {{"{name}": []}}', f"chat_template_kwargs.{name}"
        yield route, f'"chat_template_kwargs": {{"a": {DEEP}}}', "chat_template_kwargs"
        yield route, '"chat_template_kwargs": {"a": [NaN]}', "chat_template_kwargs.a[0]"
        yield route, f'"chat_template_kwargs": {{"a": "{"x" * (5 << 20)}"}}', "chat_template_kwargs"
        yield route, f'"messages": {json.dumps([{"role": "user", "content": "a"}] * 100_000)}', "messages"
    for route in (CHAT, RESPONSES, "/tokenize"):
        yield route, f'"tools": {DEEP}', "tools"
        yield route, f'"tools": {json.dumps([{}] * 100_000)}', "tools"
    tool = '{"type": "function", "function": {"name": "f", "parameters": {"x": %s}}}'
    yield CHAT, f'"tools": [{tool % json.dumps("x" * (1 << 20))}]', ""
    yield CHAT, f'"tools": [{tool % json.dumps([{}] * 300_000)}]', ""
    yield CHAT, f'"tools": [{tool % DEEP}], "tool_choice": "required"', "tools"
    yield RESPONSES, f'"input": {json.dumps([{"role": "user", "content": "a"}] * 100_000)}', "input"
    yield TEXTS, f'"prompt": {json.dumps(list(range(1_000_000)))}', "prompt"
    yield TEXTS, f'"prompt": {DEEP}', "prompt"
    yield TEXTS, f'"prompt": {json.dumps("a " * (5 << 19))}', "prompt"
    yield "/detokenize", f'"tokens": {json.dumps(list(range(1_000_000)))}', "tokens"


CASES = list(cases())


class StreamBeside:
    """The stream of another caller, begun again where it ends; `largest_gap` is between its events since `restart`."""

    def __init__(self, url: str) -> None:
        self._host = url.removeprefix("http://")
        self._has_ended = False
        self.count, self.largest_gap, self._last = 0, 0.0, time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def restart(self) -> None:
        self.largest_gap, self._last = 0.0, time.monotonic()

    def close(self) -> None:
        self._has_ended = True
        self._thread.join(20)

    def _run(self) -> None:
        body = json.dumps({"prompt": "Once upon a time", "max_tokens": 200, "stream": True, "ignore_eos": True})
        while not self._has_ended:
            connection = http.client.HTTPConnection(self._host, timeout=20)
            connection.request("POST", TEXTS, body, {"Content-Type": "application/json"})
            for _line in connection.getresponse():
                now = time.monotonic()
                self.largest_gap, self._last = max(self.largest_gap, now - self._last), now
                self.count += 1
                if self._has_ended:
                    break
            connection.close()


@pytest.fixture(scope="module")
def demo_url(demo: RunningServer) -> Iterator[str]:
    with running(demo.address) as url:
        yield url


@pytest.fixture(scope="module")
def beside(demo_url: str) -> Iterator[StreamBeside]:
    stream = StreamBeside(demo_url)
    yield stream
    stream.close()
    assert stream.count > 100


@pytest.mark.parametrize(("route", "fields", "param"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)])
def test_it_ends_soon_and_another_stream_goes_on(
    demo_url: str, beside: StreamBeside, route: str, fields: str, param: str
) -> None:
    base = "" if fields.startswith(('"messages"', '"prompt"', '"input"')) else f"{BASES[route]}, "
    beside.restart()
    began = time.monotonic()
    status, _, said = post(f"{demo_url}{route}", f"{{{base}{fields}}}".encode())
    seconds = time.monotonic() - began
    assert status == 400 or (status == 200 and not param), said[:300]
    if status == 400:
        error = json.loads(said)["error"]
        assert error["param"].startswith(param or ("structured_outputs", "tools")), error["message"][:300]
        assert len(error["message"]) < 600
    assert seconds < SECONDS
    assert beside.largest_gap < SECONDS
