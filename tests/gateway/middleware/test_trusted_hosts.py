"""Host headers."""

from __future__ import annotations

import pytest

from gateway.conftest import running
from server.conftest import RunningServer
from support.http.calls import send


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
