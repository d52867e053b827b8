"""Spans of HTTP requests: between the caller's and those of the calls that they lead to, and without their text."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra [otel] is not installed")

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gateway.conftest import running
from gateway.upstream.conftest import in_front_of
from gradellm.transport.spans import Spans
from gradellm_engine import Engine
from gradellm_server.observability.tracing import Tracing
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer
from support.http.calls import MESSAGES, connect, post, send
from support.upstream.fake_vllm import FakeVllm

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADERS = {"X-Request-Id": "job-7", "traceparent": f"00-{TRACE}-{SPAN}-01", "User-Agent": "a-client/1"}
BODY: Any = {"messages": MESSAGES, "max_tokens": 2}


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


class _Kept(SimpleSpanProcessor):
    """Sends spans to an exporter that outlives each gateway."""

    def shutdown(self) -> None:
        pass


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Spans:
    return spans_to(exporter)


def spans_to(exporter: InMemorySpanExporter) -> Spans:
    return Spans(_Kept(exporter), service="gradellm-gateway", scope="gradellm_gateway", version="1")


@pytest.fixture(scope="module")
def server(engine: Engine, exporter: InMemorySpanExporter) -> Iterator[RunningServer]:
    own = Tracing(Spans(SimpleSpanProcessor(exporter), service="gradellm", scope="gradellm_server", version="1"))
    running_server = RunningServer(engine, ServerSettings(listen="127.0.0.1:0"), observers=[own])
    yield running_server
    running_server.close()


@pytest.fixture(scope="module")
def url(server: RunningServer, exporter: InMemorySpanExporter) -> Iterator[str]:
    with running(server.address, settings={"spans": spans_to(exporter)}) as url:
        yield url


@pytest.fixture(autouse=True)
def _empty(exporter: InMemorySpanExporter) -> None:
    exporter.clear()


def ended(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    """All spans that have ended, once one of this name is among them."""
    until = time.monotonic() + 10
    while not any(span.name == name for span in exporter.get_finished_spans()):
        assert time.monotonic() < until, [span.name for span in exporter.get_finished_spans()]
        time.sleep(0.005)
    return list(exporter.get_finished_spans())


def named(exported: list[ReadableSpan], name: str) -> Any:
    (found,) = (span for span in exported if span.name == name)
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_between_its_caller_and_the_servers_call(
    url: str, exporter: InMemorySpanExporter, stream: bool
) -> None:
    status, _, _ = post(f"{url}/v1/chat/completions", {**BODY, "stream": stream}, HEADERS)
    assert status == 200
    exported = ended(exporter, "POST /v1/chat/completions")
    own, call = named(exported, "POST /v1/chat/completions"), named(exported, "gradellm.v1.ExplainerService/Generate")
    assert own.kind is SpanKind.SERVER
    assert (f"{own.context.trace_id:032x}", f"{own.parent.span_id:016x}") == (TRACE, SPAN)
    assert (call.context.trace_id, call.parent.span_id) == (own.context.trace_id, own.context.span_id)
    assert dict(own.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "user_agent.original": "a-client/1",
        "gradellm.request.id": "job-7",
    }
    assert own.start_time <= call.start_time
    assert own.end_time >= call.end_time - 10_000_000  # the server's ends when it has sent its last message
    assert "Once upon" not in own.to_json()


def test_a_callers_fault_is_no_error_of_the_gateway(url: str, exporter: InMemorySpanExporter) -> None:
    status, _, _ = post(f"{url}/v1/chat/completions", {**BODY, "max_tokens": "many"})
    own = named(ended(exporter, "POST /v1/chat/completions"), "POST /v1/chat/completions")
    assert own.attributes["http.response.status_code"] == status == 400
    assert own.status.status_code is StatusCode.UNSET
    assert own.parent is None


def test_a_server_that_is_not_there_is_an_error(spans: Spans, exporter: InMemorySpanExporter) -> None:
    with running("127.0.0.1:1", settings={"spans": spans}) as url:
        status, _, _ = post(f"{url}/v1/chat/completions", BODY)
    own = named(ended(exporter, "POST /v1/chat/completions"), "POST /v1/chat/completions")
    assert (status, own.attributes["error.type"]) == (503, "503")
    assert own.status.status_code is StatusCode.ERROR


def test_unknown_paths_and_methods_name_no_span(url: str, exporter: InMemorySpanExporter) -> None:
    send(url, "GET", "/a/b?secret=1")
    with connect(url) as connection:
        connection.sendall(b"FETCH /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        while connection.recv(4096):
            pass
    first = named(ended(exporter, "GET"), "GET")
    assert first.attributes["url.path"] == "/a/b"
    assert "http.route" not in first.attributes
    assert "secret" not in first.to_json()
    other = named(ended(exporter, "HTTP /v1/models"), "HTTP /v1/models")
    assert other.attributes["http.request.method"] == "_OTHER"


def test_probes_have_no_span(url: str, exporter: InMemorySpanExporter) -> None:
    for path in ("/health", "/healthz", "/metrics", "/version"):
        send(url, "GET", path)
    exported = ended(exporter, "GET /version")
    assert [span.name for span in exported if "http.request.method" in (span.attributes or {})] == ["GET /version"]


def test_a_client_that_leaves_ends_its_span(url: str, exporter: InMemorySpanExporter) -> None:
    with connect(url) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    own = named(ended(exporter, "POST /v1/chat/completions"), "POST /v1/chat/completions")
    assert own.status.status_code is StatusCode.UNSET


def test_the_calls_of_an_upstream_are_its_children(
    server: RunningServer, spans: Spans, exporter: InMemorySpanExporter
) -> None:
    fake = FakeVllm(server.address)
    try:
        with in_front_of(fake.url, server.address, settings={"spans": spans}) as url:
            exporter.clear()
            fake.received.clear()
            assert post(f"{url}/v1/chat/completions", {**BODY, "gradellm": {}}, HEADERS)[0] == 200
            own = named(ended(exporter, "POST /v1/chat/completions"), "POST /v1/chat/completions")
    finally:
        fake.close()
    context = own.context
    for received in fake.received:
        assert received.header("traceparent") == f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
    assert fake.received
