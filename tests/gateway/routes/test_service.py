"""Probes, and the version."""

from __future__ import annotations

import json
import urllib.request

from gateway.conftest import running
from gradellm import __version__
from support.http.calls import send


def test_health(url: str) -> None:
    with urllib.request.urlopen(f"{url}/healthz") as message_of:
        assert json.load(message_of) == {"status": "ok"}
    assert send(url, "GET", "/health")[::2] == (200, "")


def test_no_server_answers() -> None:
    with running("127.0.0.1:1", retry=None) as url:
        assert send(url, "GET", "/health")[0] == 503


def test_version(url: str) -> None:
    assert send(url, "GET", "/version")[2] == {"version": __version__}
