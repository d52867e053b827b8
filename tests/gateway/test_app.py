"""The routes: models, attribution, evaluation, health, unknown paths, hosts and origins, tokens, failures."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import openai
import pytest

from gateway.conftest import running
from gradellm import Client
from gradellm_server.auth.tokens import entry, make_token
from server.conftest import RunningServer, Serving
from support.http.calls import MESSAGES, post, send
from support.http.proxy import FakeProxy, proxy

__all__ = ["proxy"]


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
