"""The access log: one line for each call, without any text."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import Engine
from gradellm_server.observability.access_log import AccessLog
from gradellm_server.observability.logging_setup import FIELDS, JsonFormatter, TextFormatter
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer

SECRET = "Xyzzy secret"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[RunningServer]:
    running = RunningServer(engine, ServerSettings(listen="127.0.0.1:0"), observers=[AccessLog()])
    yield running
    running.close()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    caplog.set_level(logging.INFO)
    return lambda: [json.loads(JsonFormatter().format(r)) for r in caplog.records if hasattr(r, FIELDS)]


def line_of(lines: Callable[[], list[dict[str, Any]]]) -> dict[str, Any]:
    limit = time.monotonic() + 10
    while not lines():
        assert time.monotonic() < limit, "no line"
        time.sleep(0.005)
    (line,) = lines()
    return line


def test_the_line_of_a_stream_has_counts_and_times(
    server: RunningServer, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    request = pb.GenerateRequest(
        input=pb.Input(prompt=SECRET), max_new_tokens=3, attribution=pb.AttributionOptions(), stop=["qqqq"]
    )
    metadata = [("x-request-id", "job-7"), ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01")]
    answers = list(server.stub.Generate(request, metadata=metadata))
    line = line_of(lines)
    assert line["message"] == "Generate OK"
    assert (line["id"], line["trace_id"], line["client"], line["code"]) == ("job-7", TRACE, None, "OK")
    assert (line["method"], line["finish_reason"], line["reason"]) == ("grad_ellm", "max_new_tokens", "")
    usage = answers[-1].finished.usage
    assert (line["prompt_tokens"], line["completion_tokens"]) == (usage.prompt_tokens, 3)
    assert (line["attributed_tokens"], line["reused_tokens"]) == (3, usage.reused_prompt_tokens)
    for phase in ("queue", "prefill", "decode", "attribution"):
        assert line[f"{phase}_seconds"] == pytest.approx(
            getattr(answers[-1].finished.timings, f"{phase}_seconds"), abs=1e-6
        )
    assert 0 < line["first_token_seconds"] < line["total_seconds"]


def test_the_line_of_a_cancelled_stream_counts_sent_tokens(
    server: RunningServer, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    call = server.stub.Generate(pb.GenerateRequest(input=pb.Input(prompt=SECRET), max_new_tokens=200))
    for _ in range(4):
        next(call)
    call.cancel()
    line = line_of(lines)
    assert line["code"] == "CANCELLED"
    assert line["completion_tokens"] >= 3
    assert "queue_seconds" not in line


def test_a_deadline_is_distinguished_from_a_cancellation(
    server: RunningServer, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    options = pb.AttributionOptions()
    request = pb.GenerateRequest(input=pb.Input(prompt="a"), max_new_tokens=250, attribution=options)
    with pytest.raises(grpc.RpcError):
        list(server.stub.Generate(request, timeout=0.05))
    assert line_of(lines)["code"] == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize(
    ("call", "code", "reason"),
    [
        (lambda s: s.stub.Tokenize(pb.TokenizeRequest(input=pb.Input(prompt=SECRET))), "OK", ""),
        (lambda s: s.stub.GetServerInfo(pb.GetServerInfoRequest()), "OK", ""),
        (lambda s: s.stub.Tokenize(pb.TokenizeRequest()), "INVALID_ARGUMENT", "INVALID_REQUEST"),
        (
            lambda s: list(s.stub.Generate(pb.GenerateRequest(input=pb.Input(prompt=SECRET), top_p=2.0))),
            "INVALID_ARGUMENT",
            "INVALID_REQUEST",
        ),
    ],
)
def test_every_call_has_a_line(
    server: RunningServer,
    lines: Callable[[], list[dict[str, Any]]],
    call: Callable[[RunningServer], object],
    code: str,
    reason: str,
) -> None:
    if code == "OK":
        call(server)
    else:
        with pytest.raises(grpc.RpcError):
            call(server)
    line = line_of(lines)
    assert (line["code"], line["reason"]) == (code, reason)
    assert re.fullmatch(r"[0-9a-f]{32}", line["id"])


def test_no_line_holds_text(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="gradellm_server")
    request = pb.AttributeRequest(input=pb.Input(prompt=SECRET), completion="plugh secret")
    list(server.stub.Attribute(request))
    with pytest.raises(grpc.RpcError):
        list(server.stub.Attribute(pb.AttributeRequest(input=pb.Input(prompt=SECRET), completion="")))
    logged = "".join(f(r) for r in caplog.records for f in (JsonFormatter().format, TextFormatter().format))
    assert "Attribute" in logged
    assert "secret" not in logged
