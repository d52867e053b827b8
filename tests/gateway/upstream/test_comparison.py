"""The upstream's tokenizer and chat template are compared with the explainer's when the gateway starts."""

from __future__ import annotations

import json
import time

import pytest

from gateway.upstream.conftest import in_front_of
from server.conftest import RunningServer
from support.http.calls import MESSAGES, post, send
from support.http.server import HttpServer, Received, Reply
from support.upstream.fake_vllm import KEY, MODEL, FakeVllm

BODY = {"model": "any", "messages": MESSAGES, "max_tokens": 2}


def about(url: str) -> dict[str, object]:
    found: dict[str, object] = send(url, "GET", "/v1/gradellm/info")[2]["upstream"]
    return found


def test_the_same_model(vllm: FakeVllm, url: str) -> None:
    same = {"tokenizer": "same", "template": "same", "tells_ids": True}
    assert about(url) == {"model": MODEL, "dtype": "float32", **same}


def test_an_upstream_that_limits_logprobs(vllm: FakeVllm, server: RunningServer) -> None:
    vllm.max_logprobs = 0
    with in_front_of(vllm.url, server.address) as url:
        assert about(url)["tells_ids"]
        vllm.received.clear()
        assert post(f"{url}/v1/chat/completions", {**BODY, "gradellm": {}})[0] == 200
    (asked,) = vllm.chats
    assert asked["logprobs"]
    assert "top_logprobs" not in asked


def test_another_template(vllm: FakeVllm, server: RunningServer) -> None:
    vllm.prompt_suffix = "!"
    with in_front_of(vllm.url, server.address) as url:
        assert (about(url)["tokenizer"], about(url)["template"]) == ("same", "different")


@pytest.mark.parametrize(("has_tokenize", "tells_ids"), [(False, True), (True, False), (False, False)])
def test_upstreams_that_tell_less(vllm: FakeVllm, server: RunningServer, has_tokenize: bool, tells_ids: bool) -> None:
    vllm.has_tokenize, vllm.tells_ids = has_tokenize, tells_ids
    with in_front_of(vllm.url, server.address) as url:
        found = about(url)
    expected = "same" if has_tokenize or tells_ids else "not proved"
    assert (found["tokenizer"], found["template"], found["tells_ids"]) == (expected, expected, tells_ids)


@pytest.mark.parametrize("has_tokenize", [True, False])
def test_another_model_is_refused(vllm: FakeVllm, server: RunningServer, has_tokenize: bool) -> None:
    vllm.shift, vllm.has_tokenize = 1, has_tokenize
    refusals: list[str] = []
    with in_front_of(vllm.url, server.address, refusals=refusals, is_compared=False) as url:
        wait_until(lambda: bool(refusals))
        status, _, said = post(f"{url}/v1/chat/completions", {**BODY, "gradellm": {}})
    assert f"the upstream's model {MODEL} is not the explainer's, " in refusals[0]
    assert "start the explainer with the upstream's model" in refusals[0]
    assert status == 503
    assert refusals[0] in json.loads(said)["error"]["message"]


def test_a_key_of_the_gateways_own_is_used_for_the_comparison(vllm: FakeVllm, server: RunningServer) -> None:
    vllm.needs_key = True
    with in_front_of(vllm.url, server.address, token=KEY) as url:
        assert send(url, "GET", "/healthz")[2]["explains"]
    assert {each.header("authorization") for each in vllm.received} >= {f"Bearer {KEY}"}


def test_without_a_key_ids_are_not_asked_for(vllm: FakeVllm, server: RunningServer) -> None:
    vllm.needs_key = True
    with in_front_of(vllm.url, server.address) as url:
        found = send(url, "GET", "/v1/gradellm/info", {"Authorization": f"Bearer {KEY}"})[2]["upstream"]
    assert (found["tokenizer"], found["tells_ids"]) == ("same", False)


def test_chats_pass_before_both_are_up_and_are_explained_after_it(server: RunningServer) -> None:
    async def loading(request: Received, reply: Reply) -> None:
        await reply.json({"detail": "loading"}, 503)

    first = HttpServer(loading)
    with in_front_of(first.url, server.address, is_compared=False) as url:
        wait_until(lambda: bool(first.received))
        assert post(f"{url}/v1/chat/completions", BODY)[0] == 503  # the upstream's own
        status, headers, said = post(f"{url}/v1/chat/completions", {**BODY, "gradellm": {}})
        assert (status, headers["retry-after"]) == (503, "2")
        assert "not explained yet" in json.loads(said)["error"]["message"]
        first.close()
        vllm = FakeVllm(server.address, port=first.port)
        wait_until(lambda: send(url, "GET", "/healthz")[2]["explains"])
        assert post(f"{url}/v1/chat/completions", {**BODY, "gradellm": {}})[0] == 200
        vllm.close()


def wait_until(condition: object, seconds: float = 20.0) -> None:
    assert callable(condition)
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    assert condition()
