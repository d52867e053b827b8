"""Settings of a server: refused with the setting's name, before anything is bound or loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradellm_server.settings import MAX_SECONDS, ListenError, ServerSettings, is_local, split_address


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"listen": "not an address"}, "not an address has no port; give HOST:PORT"),
        ({"listen": "127.0.0.1"}, "127.0.0.1 has no port"),
        ({"listen": "127.0.0.1:http"}, "127.0.0.1:http has no port"),
        ({"listen": "127.0.0.1:99999"}, "port 99999 is out of range; the largest is 65535"),
        ({"max_queued": -1}, "max_queued must not be negative, was -1"),
        ({"max_queued_tokens": 0}, "max_queued_tokens must be at least 1, was 0"),
        ({"max_message_bytes": 0}, "max_message_bytes must be at least 1, was 0"),
        ({"health_listen": "8080"}, "8080 is not HOST:PORT"),
        ({"metrics_listen": "localhost:70000"}, "localhost:70000 is not HOST:PORT"),
        *(
            ({name: seconds}, f"{name} must be more than 0 and less than 1,000,000")
            for name, seconds in (
                ("reader_timeout_seconds", 0),
                ("stall_seconds", -1),
                ("keepalive_seconds", MAX_SECONDS),
                ("connection_seconds", float("nan")),
                ("receive_seconds", float("inf")),
            )
        ),
    ],
)
def test_a_setting_out_of_range_is_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ListenError, match=words):
        ServerSettings(**settings)


def test_a_server_may_have_no_queue() -> None:
    assert ServerSettings(max_queued=0).max_queued == 0


def test_plain_text_needs_loopback_or_insecure(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="--tls-cert"):
        ServerSettings(listen="0.0.0.0:1")
    ServerSettings(listen="0.0.0.0:1", insecure=True)
    ServerSettings(listen="0.0.0.0:1", tls_cert=tmp_path, tls_key=tmp_path)
    for cert, key, client_ca in ((tmp_path, None, None), (None, tmp_path, None), (None, None, tmp_path)):
        with pytest.raises(ListenError, match="--tls-"):
            ServerSettings(tls_cert=cert, tls_key=key, tls_client_ca=client_ca)


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("unix:/run/a.sock", True),
        ("localhost:1", True),
        ("127.8.9.10:1", True),
        ("[::1]:1", True),
        ("[::]:1", False),
        ("0.0.0.0:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example.org:1", False),
    ],
)
def test_local_addresses(address: str, local: bool) -> None:
    assert is_local(address) == local


@pytest.mark.parametrize(
    ("address", "parts"), [("localhost:0", ("localhost", 0)), ("[::1]:65535", ("::1", 65535)), ("h:09", ("h", 9))]
)
def test_an_address_is_split(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize("address", ["", ":1", "h:", "h:-1", "h:65536", "h", "h: 1", "h:1.0"])
def test_a_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(ListenError, match="is not HOST:PORT"):
        split_address(address)
