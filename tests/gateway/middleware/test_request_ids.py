"""Ids and traces of requests, in responses, in the gateway's log and in the server's."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator

import pytest

from gradellm_engine import Engine
from gradellm_server.observability.call import Call, CallObserver
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer
from support.http.calls import MESSAGES, post, send

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADERS = {"X-Request-Id": "of-the-caller-1", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
BODY = {"messages": MESSAGES, "max_tokens": 1}


class _Calls(CallObserver):
    def __init__(self) -> None:
        self.seen: list[Call] = []

    def on_end(self, call: Call) -> None:
        self.seen.append(call)


@pytest.fixture(scope="module")
def calls() -> _Calls:
    return _Calls()


@pytest.fixture(scope="module")
def server(engine: Engine, calls: _Calls) -> Iterator[RunningServer]:
    running_server = RunningServer(engine, ServerSettings(listen="127.0.0.1:0"), observers=[calls])
    yield running_server
    running_server.close()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The log's lines, once there are any: they follow responses."""
    until = time.monotonic() + 10
    while not caplog.records and time.monotonic() < until:
        time.sleep(0.01)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("stream", [False, True])
def test_a_callers_id_and_trace_reach_response_log_and_server(
    url: str, calls: _Calls, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    calls.seen.clear()
    with caplog.at_level(logging.INFO, "gradellm_gateway.requests"):
        status, headers, said = post(f"{url}/v1/chat/completions", {**BODY, "stream": stream}, HEADERS)
        lines(caplog)
    assert (status, headers["x-request-id"]) == (200, "of-the-caller-1")
    first = json.loads(said.split("\n")[0].removeprefix("data: "))
    assert first["id"] == "chatcmpl-of-the-caller-1"
    assert {(call.id, call.trace_id) for call in calls.seen} == {("of-the-caller-1", TRACE)}
    assert "Generate" in {call.method for call in calls.seen}
    (line,) = lines(caplog)
    assert line.startswith(f"POST /v1/chat/completions 200 id=of-the-caller-1 trace={TRACE} seconds=")


def test_a_request_without_an_id_gets_one(url: str, calls: _Calls) -> None:
    calls.seen.clear()
    _, headers, said = post(f"{url}/v1/chat/completions", BODY)
    assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])
    assert json.loads(said)["id"] == f"chatcmpl-{headers['x-request-id']}"
    assert {call.id for call in calls.seen} == {headers["x-request-id"]}


@pytest.mark.parametrize("sent", ["a b", "a" * 129, "\xe4", "a\tb", "'; drop"])
def test_an_id_that_could_break_a_log_is_replaced(url: str, sent: str) -> None:
    status, headers, _ = send(url, "GET", "/v1/models", {"X-Request-Id": sent, "traceparent": "\xe4"})
    assert status == 200
    assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])


def test_refusals_have_an_id_too(url: str) -> None:
    assert send(url, "GET", "/v1/nothing", HEADERS)[1]["x-request-id"] == "of-the-caller-1"
    assert post(f"{url}/v1/chat/completions", {}, HEADERS)[1]["x-request-id"] == "of-the-caller-1"
    time.sleep(0.1)  # their lines are of this test


def test_probes_have_no_line(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gradellm_gateway.requests"):
        send(url, "GET", "/health")
        send(url, "GET", "/version?secret=1")
        assert [line.split(" id=")[0] for line in lines(caplog)] == ["GET /version 200"]
