"""Chats with a `gradellm` object, through the gateway: the upstream's answer, and its explanation."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import openai
import pytest

from gateway.upstream.conftest import in_front_of
from gradellm import Client, Explanation
from gradellm_engine import Engine
from gradellm_gateway.request_body import MAX_BODY_BYTES
from gradellm_server.observability.call import Call, CallObserver
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer, Serving
from support.http.calls import MESSAGES, connect, post
from support.upstream.fake_vllm import CREATED, KEY, MODEL, FakeVllm, data_lines

BODY: dict[str, Any] = {"model": "any", "messages": MESSAGES, "max_tokens": 5, "temperature": 0}


def chat(url: str, **fields: Any) -> Any:
    status, _, said = post(f"{url}/v1/chat/completions", {**BODY, **fields})
    assert status == 200, said
    return data_lines(said) if fields.get("stream") else json.loads(said)


def of_the_upstream(chunks: list[Any]) -> list[Any]:
    return [chunk for chunk in chunks if not isinstance(chunk, dict) or not {"gradellm", "event"} & chunk.keys()]


def said_of(chunks: list[Any], index: int = 0) -> list[Any]:
    return [chunk["gradellm"] for chunk in chunks if "gradellm" in chunk and chunk["choices"][0]["index"] == index]


def rows(objects: list[Any]) -> list[Any]:
    return [each["attribution"]["scores"] for each in objects if "attribution" in each]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 2, "temperature": 1, "seed": 4},
        {"logprobs": True},
        {"return_token_ids": True},
        {"stream_options": {"include_usage": True}},
        {"stop": ["e"]},
    ],
)
def test_a_stream_is_the_upstreams_with_chunks_between(vllm: FakeVllm, url: str, fields: dict[str, Any]) -> None:
    direct = data_lines(post(f"{vllm.url}/chat/completions", {**BODY, **fields, "stream": True})[2])
    chunks = chat(url, **fields, stream=True, gradellm={})
    assert of_the_upstream(chunks) == direct
    assert chunks[-1] == "[DONE]"
    for index in range(fields.get("n", 1)):
        objects = said_of(chunks, index)
        tokens = [each for each in objects if "token" in each]
        assert len(rows(objects)) == len(tokens) > 0
        assert "started" in objects[0]
        assert objects[-1]["finished"]["usage"]["attributed_tokens"] == len(tokens)
        assert objects[-1]["upstream"]["ids"] == "upstream"
        assert objects[0]["upstream"]["template"] == "same"


@pytest.mark.parametrize("fields", [{}, {"logprobs": True, "return_token_ids": True}, {"n": 2, "temperature": 1}])
def test_an_answer_that_is_not_streamed(vllm: FakeVllm, url: str, fields: dict[str, Any]) -> None:
    direct = json.loads(post(f"{vllm.url}/chat/completions", {**BODY, **fields})[2])
    answer = chat(url, **fields, gradellm={})
    choices = [answer] if "n" not in fields else answer["choices"]
    for choice in choices:
        explanation = Explanation.from_json(json.dumps(choice.pop("gradellm")))
        assert len(explanation.attributions) == len(explanation.tokens) > 0
        assert choice.pop("gradellm_upstream")["tokenizer"] == "same"
    assert answer == direct


def test_the_rows_are_those_of_attribute(vllm: FakeVllm, url: str, server: RunningServer) -> None:
    objects = said_of(chat(url, stream=True, gradellm={"resolution": "word"}))
    ids = [each["token"]["id"] for each in objects if "token" in each]
    with Client(server.address) as client:
        expected = client.attribute(messages=MESSAGES, completion_ids=ids, resolution="word")
    for row, scores in zip(rows(objects), expected.scores, strict=True):
        assert row == pytest.approx(scores, abs=1e-5)


def test_only_the_upstream_gets_the_callers_key(vllm: FakeVllm, server: RunningServer) -> None:
    vllm.needs_key = True
    with in_front_of(vllm.url, server.address, token=KEY) as url:
        assert post(f"{url}/v1/chat/completions", {**BODY, "gradellm": {}})[0] == 401
        status, _, said = post(
            f"{url}/v1/chat/completions", {**BODY, "gradellm": {}}, {"Authorization": f"Bearer {KEY}"}
        )
    assert status == 200
    assert json.loads(said)["gradellm"]["attributions"]


class Traces(CallObserver):
    """Records the trace of each call."""

    def __init__(self) -> None:
        self.by_method: dict[str, str] = {}

    def on_end(self, call: Call) -> None:
        self.by_method[call.method] = call.trace_id


def test_the_trace_goes_to_both(vllm: FakeVllm, engine: Engine) -> None:
    trace_id, traces = "4bf92f3577b34da6a3ce929d0e0e4736", Traces()
    trace = f"00-{trace_id}-00f067aa0ba902b7-01"
    headers = {"Traceparent": trace, "Tracestate": "a=b"}
    explainer = RunningServer(engine, ServerSettings(listen="127.0.0.1:0"), [traces])
    with in_front_of(vllm.url, explainer.address) as url:
        vllm.received.clear()
        assert post(f"{url}/v1/chat/completions", {**BODY, "gradellm": {}}, headers)[0] == 200
    explainer.close()
    assert traces.by_method["Follow"] == trace_id
    (received,) = [each for each in vllm.received if "chat" in each.target]
    assert (received.header("traceparent"), received.header("tracestate")) == (trace, "a=b")


def test_the_upstreams_refusals_are_unchanged(vllm: FakeVllm, url: str) -> None:
    for fields in ({"top_logprobs": 2}, {"max_tokens": 10_000_000}):
        expected = post(f"{vllm.url}/chat/completions", {**BODY, **fields})
        found = post(f"{url}/v1/chat/completions", {**BODY, **fields, "gradellm": {}})
        assert (found[0], found[2]) == (expected[0], expected[2])
        assert found[0] == 400


@pytest.mark.parametrize(
    ("own", "param"),
    [
        (3, "gradellm"),
        ({"colour": 1}, "gradellm.colour"),
        ({"forced_ids": [1]}, "gradellm.forced_ids"),
        ({"attribution": None}, "gradellm.attribution"),
        ({"resolution": "line"}, "gradellm.resolution"),
        ({"tokens": "a text"}, "gradellm.tokens"),
        ({"pictures": True}, "gradellm.pictures"),
        ({"citations": True}, "gradellm.citations"),
        ({"segments": {"a": [0, 3]}}, "gradellm.segments.a"),
        ({"segments": {"a": [9, 0, 3]}}, "gradellm.segments.a"),
        ({"segments": {"a": [0, 0, 300]}}, "gradellm.segments.a"),
        ({"documents": [{"name": "a", "text": "nowhere"}]}, "gradellm.documents[0].text"),
    ],
)
def test_gradellm_that_has_no_meaning_is_refused_before_the_upstream(
    vllm: FakeVllm, url: str, own: Any, param: str
) -> None:
    status, _, said = post(f"{url}/v1/chat/completions", {**BODY, "gradellm": own})
    assert (status, json.loads(said)["error"]["param"]) == (400, param)
    assert vllm.chats == []


def test_a_large_request_is_passed_on_and_not_explained(vllm: FakeVllm, url: str) -> None:
    large = {**BODY, "messages": [{"role": "user", "content": "a" * (MAX_BODY_BYTES + (1 << 20))}]}
    assert post(f"{url}/v1/chat/completions", {**large, "gradellm": {}})[0] in (200, 400)  # by the upstream
    status, _, said = post(f"{url}/v1/chat/completions", {"gradellm": {}, **large})
    assert (status, json.loads(said)["error"]["code"]) == (413, "request_too_large")


def test_another_template_is_told_and_its_prompt_explained(vllm: FakeVllm, url: str, server: RunningServer) -> None:
    vllm.prompt_suffix = " Well"
    objects = said_of(chat(url, stream=True, gradellm={}))
    started = objects[0]["started"]
    assert objects[0]["upstream"]["template"] == "different"
    assert started["prompt_text"].endswith(" Well")
    assert len(rows(objects)) == 5


def test_an_upstream_without_ids(vllm: FakeVllm, server: RunningServer) -> None:
    vllm.tells_ids = vllm.has_tokenize = False
    vllm.is_strict = True
    with in_front_of(vllm.url, server.address) as url:
        for stream in (True, False):
            answer = chat(url, stream=stream, gradellm={})
            provenance = said_of(answer)[-1]["upstream"] if stream else answer["gradellm_upstream"]
            assert provenance["ids"] == "tokenised again"
            assert provenance["tokenizer"] == "not proved"
            assert (rows(said_of(answer)) if stream else answer["gradellm"]["attributions"]) != []
    assert not any("logprobs" in chat for chat in vllm.chats[2:])  # the first two are the comparison's


def test_a_prompt_that_cannot_be_made_again_is_not_explained(vllm: FakeVllm, server: RunningServer) -> None:
    vllm.tells_ids = False
    with in_front_of(vllm.url, server.address) as url:
        answer = chat(url, gradellm={}, tools=[{"type": "function"}])
    assert answer["choices"][0]["message"]["content"]
    assert answer["gradellm"] is None
    assert answer["gradellm_incomplete"]["code"] == "ids_missing"


def test_an_upstream_that_dies_is_an_error_event_and_no_end(vllm: FakeVllm, url: str) -> None:
    vllm.break_after = 2
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)  # pragma: allowlist secret (none)
    stream = client.chat.completions.create(
        model="any", messages=MESSAGES, max_tokens=5, stream=True, extra_body={"gradellm": {}}
    )
    with pytest.raises(openai.APIError, match="broke off its answer"):
        list(stream)


@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnect_cancels_the_upstream(vllm: FakeVllm, url: str, stream: bool) -> None:
    vllm.pause_seconds = 1.0
    body = json.dumps({**BODY, "stream": stream, "gradellm": {}}).encode()
    with connect(url) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        until = time.monotonic() + 10
        while not vllm.chats and time.monotonic() < until:
            time.sleep(0.01)
        if stream:
            raw.recv(1000)
    until = time.monotonic() + 10
    while stream and not vllm.cancelled and time.monotonic() < until:
        time.sleep(0.01)
    assert vllm.cancelled or not stream


DOCUMENTS: Any = [{"role": "user", "content": "Tim had a red ball.\n\nWho had it?"}]


@pytest.mark.parametrize("stream", [True, False])
def test_documents_are_cited_by_url(vllm: FakeVllm, url: str, stream: bool) -> None:
    own = {"documents": [{"name": "ball", "text": "Tim had a red ball.", "url": "http://x"}], "attribution": "paper"}
    answer = chat(url, messages=DOCUMENTS, max_tokens=12, stream=stream, gradellm=own)
    if stream:
        annotations = [
            each
            for chunk in answer
            if "gradellm" in chunk
            for each in chunk["choices"][0]["delta"].get("annotations", ())
        ]
        sources = [chunk["event"]["data"] for chunk in answer if "event" in chunk]
        citations = said_of(answer)[-1]["citations"]
        content = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in of_the_upstream(answer)[:-1])
    else:
        message = answer["choices"][0]["message"]
        annotations, sources, content = message["annotations"], answer["sources"], message["content"]
        citations = answer["gradellm_citations"]
    cited = [document["name"] for each in citations for document in each["documents"]]
    assert [each["url_citation"]["url"] for each in annotations] == ["http://x" for _ in cited]
    for each in annotations:
        assert content[each["url_citation"]["start_index"] : each["url_citation"]["end_index"]].strip()
    assert len(sources) == len(set(cited))


def test_chunks_have_the_upstreams_head(url: str) -> None:
    own = [chunk for chunk in chat(url, stream=True, gradellm={"pictures": True}) if "gradellm" in chunk]
    assert {chunk["id"] for chunk in own} == {"chatcmpl-1"}
    assert {chunk["created"] for chunk in own} == {CREATED}
    assert {chunk["model"] for chunk in own} == {MODEL}
    assert "canvas" in own[0]["gradellm"]


def test_an_explainer_that_dies_in_mid_stream_leaves_the_answer_whole(server: RunningServer, serving: Serving) -> None:
    vllm = FakeVllm(server.address)
    vllm.pause_seconds = 0.2
    body = {**BODY, "messages": DOCUMENTS, "max_tokens": 12, "stream": True}
    with serving() as explainer, in_front_of(vllm.url, explainer.address, wait_seconds=2.0) as url:
        stopping = threading.Timer(0.8, lambda: explainer.run(explainer.server.stop(grace_seconds=0)))
        stopping.start()
        chunks = data_lines(post(f"{url}/v1/chat/completions", {**body, "gradellm": {}})[2])
        stopping.join()
    direct = data_lines(post(f"{vllm.url}/chat/completions", body)[2])
    vllm.close()
    assert of_the_upstream(chunks) == direct
    lacks = said_of(chunks)[-1]["incomplete"]
    assert lacks["code"] in ("explainer_unavailable", "timeout")
    assert lacks["explained_tokens"] < lacks["tokens"] == len(direct) - 2
