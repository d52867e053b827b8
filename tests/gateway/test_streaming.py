"""Server-sent events: a client that disconnects cancels its request."""

from __future__ import annotations

import json
import time

import pytest

from gateway.conftest import running
from server.conftest import Serving
from support.http.calls import MESSAGES, connect


@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnect_cancels_the_call(serving: Serving, stream: bool) -> None:
    with serving(max_running=4) as backend, running(backend.address) as url:
        body = json.dumps({"messages": MESSAGES, "stream": stream, "max_tokens": 150, "gradellm": {}}).encode()
        with connect(url) as raw:
            raw.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            until = time.monotonic() + 20
            while backend.server.engine_thread.num_unfinished == 0 and time.monotonic() < until:
                time.sleep(0.01)
            assert backend.server.engine_thread.num_unfinished == 1
            if stream:
                raw.recv(1000)
        until = time.monotonic() + 20
        while backend.server.engine_thread.num_unfinished and time.monotonic() < until:
            time.sleep(0.01)
        assert backend.server.engine_thread.num_unfinished == 0
