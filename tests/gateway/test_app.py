"""The routes: models, attribution, evaluation, health, unknown paths, hosts and origins, tokens, failures."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.conftest import running
from gradellm import Client
from gradellm_server.auth.tokens import entry, make_token
from server.conftest import RunningServer, Serving
from support.http.calls import MESSAGES, post, send
from support.http_proxy import FakeProxy, proxy

__all__ = ["proxy"]


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
        ("attribute", {"prompt": "a", "completion": "b", "citations": True}, "citations"),
        ("evaluate", {"prompt": "a", "pictures": True}, "pictures"),
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


def events(said: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in said.split("\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_attribute_and_evaluate(url: str, server: RunningServer) -> None:
    fields: dict[str, Any] = {"messages": MESSAGES, "completion": " there was", "method": "saliency"}
    status, _, said = post(f"{url}/v1/gradellm/attribute", fields)
    assert status == 200
    rows = [event["attribution"]["scores"] for event in events(said) if "attribution" in event]
    with Client(server.address) as client:
        expected = client.attribute(messages=MESSAGES, completion=" there was", method="saliency")
    assert rows[0] == pytest.approx(expected.scores[0], abs=1e-6)
    chosen = expected.token_indexes("was")
    for tokens in ("was", list(chosen), [[7, 10]]):
        status, _, said = post(f"{url}/v1/gradellm/attribute", {**fields, "tokens": tokens})
        assert status == 200
        some = [event["attribution"] for event in events(said) if "attribution" in event]
        assert [row["token_index"] for row in some] == list(chosen)
        assert some[0]["scores"] == pytest.approx(expected.scores[chosen[0]], abs=1e-6)
    status, _, said = post(f"{url}/v1/gradellm/attribute", {**fields, "pictures": True})
    assert status == 200
    words = [word["text"] for event in events(said) for word in event.get("words", ())]
    assert words == ["there", "was"]
    assert "answer" in events(said)[-1]
    fields = {"messages": MESSAGES, "max_new_tokens": 2, "pis": [0.5], "segments": {"a": [0, 0, 4]}}
    status, _, said = post(f"{url}/v1/gradellm/evaluate", fields)
    assert status == 200
    assert [event for event in events(said) if "summary" in event]
    status, _, said = post(f"{url}/v1/gradellm/evaluate", {**fields, "pis": [2]})
    assert status == 400
    assert "pis" in json.loads(said)["error"]["param"]


def test_info_and_health(url: str) -> None:
    with urllib.request.urlopen(f"{url}/v1/gradellm/info") as message_of:
        assert json.load(message_of)["model"]["family"] == "llama"
    with urllib.request.urlopen(f"{url}/healthz") as message_of:
        assert json.load(message_of) == {"status": "ok"}


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
def test_unknown_routes_return_an_openai_error(
    url: str, method: str, path: str, status: int, allow: str | None
) -> None:
    found, headers, said = send(url, method, path)
    assert found == status
    assert headers["Allow"] == allow
    error = said["error"]
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 200


def test_the_openai_client_raises_not_found_for_unknown_routes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"there is no .*/v1/embeddings"):
        client.embeddings.create(model="gradellm", input="a")


def test_an_unexpected_error_is_an_error_object(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("gradellm_gateway.chat.ChatRequest.from_json", fail)
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
def test_host_header_check(server: RunningServer, names: tuple[str, ...], host: str, status: int) -> None:
    with running(server.address, allow_hosts=names) as url:
        found, _, said = send(url, "GET", "/healthz", {"Host": host})
    assert found == status
    if status == 400:
        assert "--allow-host" in said["error"]["message"]


def test_pages_of_other_origins(server: RunningServer, url: str) -> None:
    origin = {"Origin": "https://chat.example.org"}
    assert "access-control-allow-origin" not in post(f"{url}/v1/chat/completions", {}, origin)[1]
    with running(server.address, allow_origins=("https://chat.example.org",)) as other:
        headers = post(f"{other}/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1}, origin)[1]
        assert headers["access-control-allow-origin"] == "https://chat.example.org"


def test_a_cross_site_request_is_refused(server: RunningServer, url: str) -> None:
    status, _, said = post(f"{url}/v1/chat/completions", {"messages": MESSAGES}, {"Content-Type": "text/plain"})
    assert status == 400
    assert "application/json" in json.loads(said)["error"]["message"]
    with running(server.address, allow_hosts=("127.0.0.1",)) as guarded:
        ordinary = {"messages": MESSAGES, "max_tokens": 1}
        assert post(f"{guarded}/v1/chat/completions", ordinary)[0] == 200
        assert post(f"{guarded}/v1/chat/completions", ordinary, {"Host": "evil.example"})[0] == 400


def test_the_gateways_calls_go_to_no_proxy(server: RunningServer, request: pytest.FixtureRequest) -> None:
    proxy: FakeProxy = request.getfixturevalue("proxy")
    with running(server.address, retry=None) as url:
        assert send(url, "GET", "/v1/models")[0] == 200
    assert proxy.heard == []


def test_tokens_pass_through(serving: Serving, tmp_path: Path) -> None:
    token, sha256 = make_token()
    (tmp_path / "tokens.toml").write_text(entry("alice", sha256, {"methods": ["Generate"]}))
    with serving(tokens=tmp_path / "tokens.toml") as guarded, running(guarded.address, retry=None) as url:
        with urllib.request.urlopen(f"{url}/healthz") as message_of:
            assert message_of.status == 200
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


def test_no_server() -> None:
    with running("127.0.0.1:1", retry=None) as url:
        status, _, said = post(f"{url}/v1/chat/completions", {"messages": MESSAGES})
        assert status == 503
        assert "no gradellm server answers at 127.0.0.1:1" in json.loads(said)["error"]["message"]


def test_overload_returns_retry_after(serving: Serving) -> None:
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
