"""Probes."""

from __future__ import annotations

import json
import urllib.request


def test_health(url: str) -> None:
    with urllib.request.urlopen(f"{url}/healthz") as message_of:
        assert json.load(message_of) == {"status": "ok"}
