"""Exceptions of routes as responses."""

from __future__ import annotations

import json

import pytest

from support.http.calls import MESSAGES, post


def test_an_unexpected_error_is_an_error_object(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("gradellm_gateway.chat.ChatRequest.from_json", fail)
    status, _, said = post(f"{url}/v1/chat/completions", {"messages": MESSAGES})
    assert status == 500
    assert json.loads(said)["error"]["type"] == "server_error"
    assert "secret" not in said
