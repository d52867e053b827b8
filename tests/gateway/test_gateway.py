"""The gateway, asked by OpenAI's own client and by plain HTTP."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.conftest import running
from gradellm import Client, Event, Explanation
from gradellm.models import Alternative, Token
from gradellm_gateway.__main__ import main
from gradellm_gateway.app import MAX_BODY_BYTES
from gradellm_gateway.chat import ChatRequest, Completion
from gradellm_server.auth.tokens import entry, make_token
from server.conftest import RunningServer, Serving
from support.http_proxy import FakeProxy, proxy

__all__ = ["proxy"]

NO_KEY = "none"  # what clients of servers without tokens send
MESSAGES: Any = [{"role": "user", "content": "Once upon a time"}]


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=NO_KEY, max_retries=0)


def undisturbed(server: RunningServer, **keywords: Any) -> Explanation:
    with Client(server.address) as client:
        return client.explain(messages=MESSAGES, **keywords)


def post(url: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], str]:
    data = body if isinstance(body, bytes | Iterator) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read().decode()


# --- the official client ---------------------------------------------------------------------------------------------


def test_a_chat_is_streamed_a_token_a_chunk_with_its_attribution(client: openai.OpenAI, server: RunningServer) -> None:
    expected = undisturbed(server, max_new_tokens=12, sources="prefix")
    stream = client.chat.completions.create(
        model="gradellm",
        messages=MESSAGES,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"gradellm": {"sources": "prefix"}},
    )
    started: Any = None
    texts, rows, reason, usage = [], {}, None, None
    for chunk in stream:
        own: Any = (chunk.model_extra or {}).get("gradellm") or {}
        if chunk.choices and chunk.choices[0].delta.content:
            texts.append(chunk.choices[0].delta.content)
        if "started" in own:
            started = own["started"]
        if "attribution" in own:
            rows[own["attribution"]["token_index"]] = own["attribution"]["scores"]
        if chunk.choices and chunk.choices[0].finish_reason:
            reason = chunk.choices[0].finish_reason
        usage = chunk.usage or usage
    assert "".join(texts) == expected.text
    assert texts == [token.text for token in expected.tokens if token.text]
    assert [token["id"] for token in started["prompt_tokens"]] == [token.id for token in expected.prompt_tokens]
    assert len(rows) == 12
    for row in expected.attributions:
        assert rows[row.token_index] == pytest.approx(row.scores, abs=1e-6)
    assert reason == "length"
    assert usage is not None
    assert usage.completion_tokens == 12
    assert usage.prompt_tokens == len(expected.prompt_tokens)


def test_who_does_not_ask_gets_no_attribution(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="gradellm", messages=MESSAGES, max_tokens=4, stream=True)
    assert all("gradellm" not in (chunk.model_extra or {}) for chunk in stream)


def test_an_answer_that_is_not_streamed(client: openai.OpenAI, server: RunningServer) -> None:
    expected = undisturbed(server, max_new_tokens=6, num_alternatives=2)
    answer: Any = client.chat.completions.create(
        model="gradellm",
        messages=MESSAGES,
        max_completion_tokens=6,
        logprobs=True,
        top_logprobs=2,
        extra_body={"gradellm": {}},
    )
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].logprobs.content[0].logprob == pytest.approx(expected.tokens[0].logprob, abs=1e-5)
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2
    explanation = Explanation.from_json(json.dumps(answer.gradellm))
    assert explanation.text == expected.text
    assert explanation.scores[0] == pytest.approx(expected.scores[0], abs=1e-6)


def test_sampling_and_parts_of_messages(client: openai.OpenAI, server: RunningServer) -> None:
    expected = undisturbed(server, max_new_tokens=8, temperature=1.0, top_p=0.9, seed=3, attribution=None)
    answer = client.chat.completions.create(
        model="gradellm",
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Once upon"}, {"type": "text", "text": " a time"}]}
        ],
        max_tokens=8,
        temperature=1.0,
        top_p=0.9,
        seed=3,
        presence_penalty=0,
        user="me",
    )
    assert answer.choices[0].message.content == expected.text


def test_models(client: openai.OpenAI, server: RunningServer) -> None:
    with Client(server.address) as own:
        name = own.server_info().model.name
    (model,) = client.models.list().data
    assert model.id == name
    assert client.models.retrieve(name).id == name
    client.chat.completions.create(model=name, messages=MESSAGES, max_tokens=1)
    with pytest.raises(openai.NotFoundError, match=r'"gpt-9.* is not served here'):
        client.chat.completions.create(model="gpt-9", messages=MESSAGES, max_tokens=1)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"logprobs": True, "top_logprobs": 10**6}, "top_logprobs"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"gradellm": {"colour": "red"}}, "gradellm.colour"),
        ({"messages": [{"role": "user", "content": "a" * 9000}]}, "messages"),
        ({"messages": [*MESSAGES, {"role": "user", "content": "\ud800"}]}, "messages[1].content"),
        ({"gradellm": {"layers": "none"}}, "gradellm.layers"),
        ({"gradellm": {"layers": [99]}}, "gradellm.layers"),
        ({"gradellm": {"method": "saliency"}}, "gradellm.method"),
        ({"gradellm": {"method": "random", "layer": 1}}, "gradellm.layer"),
        ({"gradellm": {"target": -1}}, "gradellm.target"),
        ({"gradellm": {"contrast": ""}}, "gradellm.contrast"),
        ({"gradellm": {"top_k": -1}}, "gradellm.top_k"),
        ({"gradellm": {"forced_ids": [-1]}}, "gradellm.forced_ids[0]"),
        ({"gradellm": {"first_attribution": 5}}, "gradellm.first_attribution"),
        ({"gradellm": {"chunk_size": 0}}, "gradellm.chunk_size"),
        ({"gradellm": {"timeout": True}}, "gradellm.timeout"),
        ({"gradellm": {"attribution": "pepper"}}, "gradellm.attribution"),
        ({"gradellm": {"method": "random", "attribution_seed": -1}}, "gradellm.attribution_seed"),
        ({"gradellm": {"segments": {"kite": [0, 0, 1], "card": [0, 5, 99]}}}, "gradellm.segments.card"),
        ({"gradellm": {"segments": {"kite": [7, 0, 1]}}}, "gradellm.segments.kite"),
        ({"gradellm": {"segments": {"kite": 3}}}, "gradellm.segments.kite"),
        ({"gradellm": 3}, "gradellm"),
    ],
)
def test_what_cannot_be_served_names_its_field(url: str, body: dict[str, Any], param: str) -> None:
    for stream in (False, True):
        status, _, said = post(f"{url}/v1/chat/completions", {"messages": MESSAGES, "stream": stream, **body})
        assert status == 400
        error = json.loads(said)["error"]
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
        assert error["message"].startswith(f"{param}: ")
        assert not re.search("max_new_tokens|num_alternatives|attribution\\.|input", error["message"])


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
def test_what_is_no_request_is_refused(url: str, path: str, body: bytes) -> None:
    status, _, said = post(f"{url}/v1/{path}", body)
    assert status == 400
    assert json.loads(said)["error"]["message"].startswith("the request ")


def chunked(*parts: bytes) -> Iterator[bytes]:
    yield from parts


def test_a_request_that_is_too_large_is_refused(url: str) -> None:
    for body in (b"x" * (MAX_BODY_BYTES + 1), chunked(*[b"x" * (1 << 20)] * 9)):
        status, _, said = post(f"{url}/v1/chat/completions", body)
        assert status == 413
        assert json.loads(said)["error"]["code"] == "request_too_large"


def test_the_length_of_a_request_is_enough_to_refuse_it(url: str) -> None:
    with connect(url) as raw:
        raw.sendall(head("Content-Length: 9000000", "Expect: 100-continue"))
        assert raw.recv(100).startswith(b"HTTP/1.1 413 ")


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def head(*headers: str) -> bytes:
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", "Content-Type: application/json", *headers, "", ""]
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize(
    "body",
    [
        {"colour": 1},
        {"raw_scores": "false"},
        {"scores": 3},
        {"self": 1},
        {"segments": {"a": 3}},
        {"scores": {"a": [1]}},
        {"scores": {"a": {"z": [1]}}},
        {"explanation": {}},
        {"\ud800": 1},
    ],
)
def test_keywords_that_are_none_are_refused(url: str, body: dict[str, Any]) -> None:
    status, _, said = post(f"{url}/v1/gradellm/evaluate", {"messages": MESSAGES, **body})
    assert status == 400
    assert json.loads(said)["error"]["type"] == "invalid_request_error"
    status, _, said = post(f"{url}/v1/chat/completions", {"messages": MESSAGES, "\ud800": 1})
    assert status == 400


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("attribute", {"prompt": "", "completion": "a"}, "prompt"),
        ("attribute", {"prompt": "a"}, "completion"),
        ("attribute", {"prompt": "a", "completion": "b", "method": "nope"}, "method"),
        (
            "attribute",
            {"prompt": "a", "completion": "b", "attribution_seed": -1, "method": "random"},
            "attribution_seed",
        ),
        ("attribute", {"prompt": "a", "completion": "b", "target": -1}, "target"),
        ("attribute", {"prompt": "a", "completion": "b", "segments": {"x": [0, 9]}}, "segments.x"),
        ("attribute", {"prompt": "a" * 9000, "completion": "b"}, "prompt"),
        ("attribute", {"prompt_ids": [-1], "completion": "b"}, "prompt_ids[0]"),
        ("attribute", {"prompt": "a", "completion": "b", "max_new_tokens": 1}, "max_new_tokens"),
        ("evaluate", {"prompt": "a", "methods": {"x": {"method": "nope"}}}, "methods"),
        ("evaluate", {"prompt": "a", "pis": [2]}, "pis"),
        ("evaluate", {"prompt": "a", "perturb": "all"}, "perturb"),
        ("evaluate", {"prompt": "a", "raw_scores": 1}, "raw_scores"),
        ("evaluate", {"prompt": "a", "completion": "b", "scores": {"x": {"y": [1]}}}, "scores.x.y"),
        ("evaluate", {"prompt": "a", "completion": "b", "scores": {"x": [1]}}, "scores.x"),
    ],
)
def test_our_own_routes_name_the_callers_keywords(url: str, path: str, body: dict[str, Any], param: str) -> None:
    status, _, said = post(f"{url}/v1/gradellm/{path}", body)
    assert status == 400
    assert json.loads(said)["error"]["param"] == param


def send(url: str, method: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, Any, Any]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    connection.request(method, path, headers=headers or {})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, json.loads(body) if body[:1] == b"{" else body.decode()


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/v1", 404, None),
        ("GET", "/v1/", 404, None),
        ("GET", "/v1/engines", 404, None),
        ("POST", "/v1/completions", 404, None),
        ("POST", "/v1/embeddings", 404, None),
        ("POST", "/v1/responses", 404, None),
        ("DELETE", "/v1/files/x", 404, None),
        ("OPTIONS", "/v1/nothing", 404, None),
        ("POST", "/v1/" + "x" * 3000, 404, None),
        ("GET", "/v1/chat/completions", 405, "POST"),
        ("PUT", "/v1/chat/completions", 405, "POST"),
        ("POST", "/v1/models", 405, "GET, HEAD"),
        ("DELETE", "/v1/models/x", 405, "GET, HEAD"),
        ("POST", "/v1/gradellm/info", 405, "GET, HEAD"),
        ("GET", "/v1/gradellm/evaluate", 405, "POST"),
        ("POST", "/healthz", 405, "GET, HEAD"),
        ("DELETE", "/shades.css", 405, "GET, HEAD"),
        ("POST", "/", 405, "GET, HEAD"),
        ("GET", "/nothing", 404, None),
    ],
)
def test_what_is_no_route_is_told_as_openai_does(
    url: str, method: str, path: str, status: int, allow: str | None
) -> None:
    found, headers, said = send(url, method, path)
    assert found == status
    assert headers["Allow"] == allow
    error = said["error"]
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 200


def test_openais_client_knows_what_is_not_there(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"there is no .*/v1/embeddings"):
        client.embeddings.create(model="gradellm", input="a")


def test_what_nobody_expected_is_an_error_object(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("gradellm_gateway.chat.ChatRequest.of", fail)
    status, _, said = post(f"{url}/v1/chat/completions", {"messages": MESSAGES})
    assert status == 500
    assert json.loads(said)["error"]["type"] == "server_error"
    assert "secret" not in said


@pytest.mark.parametrize(
    ("names", "host", "status"),
    [
        (("localhost", "::1"), "[::1]:8080", 200),
        (("localhost",), "LOCALHOST:8080", 200),
        (("localhost",), "localhost", 200),
        (("localhost",), "evil.example:80", 400),
        (("localhost",), "", 400),
    ],
)
def test_by_which_names_it_answers(server: RunningServer, names: tuple[str, ...], host: str, status: int) -> None:
    with running(server.address, allow_hosts=names) as url:
        found, _, said = send(url, "GET", "/healthz", {"Host": host})
    assert found == status
    if status == 400:
        assert "--allow-host" in said["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_whose_text_tells_no_bytes_have_none(stream: bool) -> None:
    def token(text: str, *others: str, special: bool = False) -> Token:
        alternatives = tuple(Alternative(1, other, -1.0) for other in others)
        return Token(0, 1, text, 0, 0, -1.0, alternatives, special, None)

    tokens = [token("a", "a", "\ufffd"), token(""), token("é"), token(" b"), token("", special=True), token("\ufffd")]
    completion = Completion(ChatRequest.of({"messages": MESSAGES, "logprobs": True}), "m")
    if stream:
        chunks = [chunk for one in tokens for chunk in completion.chunks(Event(token=one))]
        content = [chunk["choices"][0]["logprobs"]["content"][0] for chunk in chunks]
    else:
        content = (completion._logprobs(tokens) or {})["content"]
    assert [one["bytes"] for one in content] == [[97], None, None, [32, 98], None, None]
    assert [one["bytes"] for one in content[0]["top_logprobs"]] == [[97], None]


def test_the_gateways_calls_go_to_no_proxy(server: RunningServer, request: pytest.FixtureRequest) -> None:
    proxy: FakeProxy = request.getfixturevalue("proxy")
    with running(server.address, retry=None) as url:
        assert send(url, "GET", "/v1/models")[0] == 200
    assert proxy.heard == []


def test_a_foreign_page_cannot_pass_for_the_gateways_own(server: RunningServer, url: str) -> None:
    status, _, said = post(f"{url}/v1/chat/completions", {"messages": MESSAGES}, {"Content-Type": "text/plain"})
    assert status == 400
    assert "application/json" in json.loads(said)["error"]["message"]
    with running(server.address, allow_hosts=("127.0.0.1",)) as guarded:
        ordinary = {"messages": MESSAGES, "max_tokens": 1}
        assert post(f"{guarded}/v1/chat/completions", ordinary)[0] == 200
        assert post(f"{guarded}/v1/chat/completions", ordinary, {"Host": "evil.example"})[0] == 400


# --- bad days --------------------------------------------------------------------------------------------------------


def test_no_server() -> None:
    with running("127.0.0.1:1", retry=None) as url:
        status, _, said = post(f"{url}/v1/chat/completions", {"messages": MESSAGES})
        assert status == 503
        assert "no gradellm server answers at 127.0.0.1:1" in json.loads(said)["error"]["message"]


def test_a_full_server_says_when_to_come_back(serving: Serving) -> None:
    with (
        serving(max_running=1, max_queued=0) as small,
        running(small.address, retry=None) as url,
        Client(small.address) as client,
    ):
        stream = client.generate("Once", max_new_tokens=200)
        next(stream)
        status, headers, said = post(f"{url}/v1/chat/completions", {"messages": MESSAGES})
        stream.close()
    assert status == 429
    assert int(headers["retry-after"]) >= 1
    assert json.loads(said)["error"]["code"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels(serving: Serving, stream: bool) -> None:
    with serving(max_running=4) as its, running(its.address) as url:
        host, port = url.removeprefix("http://").split(":")
        body = json.dumps({"messages": MESSAGES, "stream": stream, "max_tokens": 150, "gradellm": {}}).encode()
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            until = time.monotonic() + 20
            while its.server.engine_thread.num_unfinished == 0 and time.monotonic() < until:
                time.sleep(0.01)
            assert its.server.engine_thread.num_unfinished == 1
            if stream:
                raw.recv(1000)
        until = time.monotonic() + 20
        while its.server.engine_thread.num_unfinished and time.monotonic() < until:
            time.sleep(0.01)
        assert its.server.engine_thread.num_unfinished == 0


def test_tokens_pass_through(serving: Serving, tmp_path: Path) -> None:
    token, sha256 = make_token()
    (tmp_path / "tokens.toml").write_text(entry("alice", sha256, {"methods": ["Generate"]}))
    with serving(tokens=tmp_path / "tokens.toml") as guarded, running(guarded.address, retry=None) as url:
        with urllib.request.urlopen(f"{url}/healthz") as answer:
            assert answer.status == 200
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0)
        assert client.chat.completions.create(model="", messages=MESSAGES, max_tokens=1).choices
        with pytest.raises(openai.PermissionDeniedError):
            client.models.list()
        for other in ("none", "wrong"):
            with pytest.raises(openai.AuthenticationError):
                client.with_options(api_key=other).models.list()
        status, _, said = post(
            f"{url}/v1/gradellm/attribute",
            {"messages": MESSAGES, "completion": "x"},
            {"Authorization": f"Bearer {token}"},
        )
        assert status == 403
        assert token not in said


def test_pages_of_other_origins(server: RunningServer, url: str) -> None:
    origin = {"Origin": "https://chat.example.org"}
    assert "access-control-allow-origin" not in post(f"{url}/v1/chat/completions", {}, origin)[1]
    with running(server.address, allow_origins=("https://chat.example.org",)) as other:
        headers = post(f"{other}/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1}, origin)[1]
        assert headers["access-control-allow-origin"] == "https://chat.example.org"


# --- ours ------------------------------------------------------------------------------------------------------------


def events(said: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in said.split("\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_attribute_and_evaluate(url: str, server: RunningServer) -> None:
    asked: dict[str, Any] = {"messages": MESSAGES, "completion": " there was", "method": "saliency"}
    status, _, said = post(f"{url}/v1/gradellm/attribute", asked)
    assert status == 200
    rows = [event["attribution"]["scores"] for event in events(said) if "attribution" in event]
    with Client(server.address) as client:
        expected = client.attribute(messages=MESSAGES, completion=" there was", method="saliency")
    assert rows[0] == pytest.approx(expected.scores[0], abs=1e-6)
    asked = {"messages": MESSAGES, "max_new_tokens": 2, "pis": [0.5], "segments": {"a": [0, 0, 4]}}
    status, _, said = post(f"{url}/v1/gradellm/evaluate", asked)
    assert status == 200
    assert [event for event in events(said) if "summary" in event]
    status, _, said = post(f"{url}/v1/gradellm/evaluate", {**asked, "pis": [2]})
    assert status == 400
    assert "pis" in json.loads(said)["error"]["param"]


def test_info_and_health(url: str) -> None:
    with urllib.request.urlopen(f"{url}/v1/gradellm/info") as answer:
        assert json.load(answer)["model"]["family"] == "llama"
    with urllib.request.urlopen(f"{url}/healthz") as answer:
        assert json.load(answer) == {"status": "ok"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "8080"], "is not HOST:PORT"),
        (["--listen", "0.0.0.0:8080"], "--insecure"),
        (["--tls-cert", "x"], "belong together"),
        (
            ["--tls-cert", "absent.pem", "--tls-key", "absent.key"],
            "--tls-cert absent.pem and --tls-key absent.key cannot",
        ),
        (["--max-connections", "0"], "must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
