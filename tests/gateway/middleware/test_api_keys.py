"""The gateway's own API keys."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from gateway.conftest import running
from gradellm_server.auth.tokens import entry, make_token
from server.conftest import RunningServer, Serving
from support.http.calls import MESSAGES, send

KEYS = ("first-key", "second-key")


@pytest.fixture(scope="module")
def guarded(server: RunningServer) -> Iterator[str]:
    with running(server.address, settings={"api_keys": KEYS}, allow_origins=("https://a.example",)) as url:
        yield url


def test_each_key_is_accepted(guarded: str) -> None:
    for key in KEYS:
        client = openai.OpenAI(base_url=f"{guarded}/v1", api_key=key, max_retries=0)
        assert client.chat.completions.create(model="", messages=MESSAGES, max_tokens=1).choices


@pytest.mark.parametrize(
    "sent", ["", "Bearer", "Bearer ", "Bearer first-ke", "Basic first-key", "first-key", "Bearer \xe4"]
)
def test_anything_else_is_openais_401(guarded: str, sent: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        status, headers, said = send(guarded, "GET", "/v1/models", {"Authorization": sent} if sent else {})
    assert status == 401
    assert said["error"]["code"] == "invalid_api_key"
    assert headers["WWW-Authenticate"] == "Bearer"
    assert headers["x-request-id"]
    assert "first-ke" not in str(said) + caplog.text


def test_openais_client_raises_its_own_error(guarded: str) -> None:
    client = openai.OpenAI(base_url=f"{guarded}/v1", api_key="wrong", max_retries=0)  # pragma: allowlist secret
    with pytest.raises(openai.AuthenticationError):
        client.models.list()


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/nothing", "/v1/gradellm/info", "/v1/chat/completions"])
def test_everything_below_v1_needs_a_key(guarded: str, path: str) -> None:
    assert send(guarded, "GET", path)[0] == 401
    assert send(guarded, "GET", path, {"Authorization": "Bearer first-key"})[0] != 401


@pytest.mark.parametrize("path", ["/health", "/healthz", "/version", "/", "/shades.css"])
def test_open_routes_are_vllms(guarded: str, path: str) -> None:
    assert send(guarded, "GET", path)[0] == 200


def test_preflight_requests_need_no_key_and_refusals_are_readable(guarded: str) -> None:
    origin = {"Origin": "https://a.example"}
    preflight = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    assert send(guarded, "OPTIONS", "/v1/chat/completions", preflight)[0] == 200
    assert send(guarded, "GET", "/v1/models", origin)[1]["access-control-allow-origin"] == "https://a.example"


def test_a_callers_key_is_no_token_of_the_server(serving: Serving, tmp_path: Path) -> None:
    token, sha256 = make_token()
    (tmp_path / "tokens.toml").write_text(entry("gateway", sha256, {}))
    with (
        serving(tokens=tmp_path / "tokens.toml") as locked,
        running(locked.address, retry=None, token=token, settings={"api_keys": KEYS}) as url,
    ):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEYS[0], max_retries=0)
        assert client.models.list().data
