"""Spans: parents, durations of their children, and no text in attributes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra [otel] is not installed")

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gradellm.transport.spans import Spans
from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import Engine
from gradellm_server.observability.call import Call
from gradellm_server.observability.tracing import Tracing, otlp_tracing
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer
from support.otlp_collector import collecting

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = ("traceparent", f"00-{TRACE}-{SPAN}-01")
SECRET = "Xyzzy secret"


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    exported = Tracing(
        Spans(SimpleSpanProcessor(exporter), service="gradellm", scope="gradellm_server", version="1.2.3")
    )
    exported.set_model("a-model")
    return exported


@pytest.fixture(scope="module")
def server(engine: Engine, tracing: Tracing) -> Iterator[RunningServer]:
    running = RunningServer(engine, ServerSettings(listen="127.0.0.1:0"), observers=[tracing])
    yield running
    running.close()


@pytest.fixture(autouse=True)
def _empty(exporter: InMemorySpanExporter) -> None:
    exporter.clear()


def spans(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    """The exported spans by name, once the call's own is among them."""
    limit = time.monotonic() + 10
    while True:
        exported = {span.name.rpartition("/")[2]: span for span in exporter.get_finished_spans()}
        if any(span.kind is SpanKind.SERVER for span in exported.values()):
            return exported
        assert time.monotonic() < limit, "no span"
        time.sleep(0.005)


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_a_call_is_a_child_of_its_caller_and_its_phases_are_its_children(
    server: RunningServer, exporter: InMemorySpanExporter
) -> None:
    request = pb.GenerateRequest(
        input=pb.Input(prompt=SECRET),
        max_new_tokens=3,
        temperature=0.5,
        seed=7,
        stop=["secret stop"],
        attribution=pb.AttributionOptions(),
    )
    answers = list(server.stub.Generate(request, metadata=[PARENT, ("x-request-id", "job-7")]))
    exported = spans(exporter)
    root = exported["Generate"]
    assert root.name == "gradellm.v1.ExplainerService/Generate"
    assert root.parent is not None
    assert root.context is not None
    assert (f"{root.context.trace_id:032x}", f"{root.parent.span_id:016x}") == (TRACE, SPAN)
    inference = exported["text_completion a-model"]
    assert inference.kind is SpanKind.INTERNAL
    assert inference.parent is not None
    assert inference.context is not None
    assert inference.parent.span_id == root.context.span_id
    timings = answers[-1].finished.timings
    end = root.start_time
    for name in ("queue", "prefill", "decode", "attribution"):
        child = exported[name]
        assert child.parent is not None
        assert child.parent.span_id == inference.context.span_id
        assert seconds(child) == pytest.approx(getattr(timings, f"{name}_seconds"), abs=1e-6)
        assert child.start_time == end
        end = child.end_time
    assert sum(seconds(exported[n]) for n in ("queue", "prefill", "decode", "attribution")) <= seconds(root) + 0.01
    attributes: Any = inference.attributes
    assert attributes["gen_ai.operation.name"] == "text_completion"
    assert (attributes["gen_ai.request.model"], attributes["gen_ai.response.id"]) == ("a-model", "job-7")
    assert (attributes["gen_ai.usage.input_tokens"], attributes["gen_ai.usage.output_tokens"]) == (len(SECRET) + 1, 3)
    assert (attributes["gen_ai.request.max_tokens"], attributes["gen_ai.request.temperature"]) == (3, 0.5)
    assert attributes["gen_ai.request.seed"] == 7
    assert attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert attributes["gradellm.finish_reason"] == "max_new_tokens"
    assert (attributes["gradellm.method"], attributes["gradellm.attributed_tokens"]) == ("grad_ellm", 3)
    called: Any = root.attributes
    assert called["rpc.response.status_code"] == "OK"
    assert [event.name for event in root.events] == ["first token"]
    assert "secret" not in "".join(span.to_json() for span in exported.values())
    assert root.resource.attributes["service.name"] == "gradellm"
    assert root.resource.attributes["service.version"] == "1.2.3"


def test_a_refused_call_is_a_span_without_children(server: RunningServer, exporter: InMemorySpanExporter) -> None:
    with pytest.raises(grpc.RpcError):
        list(server.stub.Generate(pb.GenerateRequest()))
    exported = spans(exporter)
    (root,) = exported.values()
    assert root.parent is None
    attributes: Any = root.attributes
    assert (attributes["rpc.response.status_code"], attributes["error.type"]) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert root.status.status_code is StatusCode.UNSET  # the client's fault


def test_a_fault_of_the_server_is_an_error(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    call = Call("Generate", code="INTERNAL", reason="NOT_FINITE", ended_at=time.monotonic(), client="alice")
    tracing.on_end(call)
    (root,) = spans(exporter).values()
    assert (root.status.status_code, root.status.description) == (StatusCode.ERROR, "NOT_FINITE")
    assert root.attributes is not None
    assert root.attributes["gradellm.client"] == "alice"
    assert root.context is not None
    assert call.trace_id == f"{root.context.trace_id:032x}"


def test_messages_are_a_chat(tracing: Tracing) -> None:
    call = Call("Generate")
    call.stats.is_chat = True
    assert tracing._operation(call) == "chat"
    assert tracing._operation(Call("Evaluate")) == "evaluate"


def test_spans_reach_a_collector(engine: Engine) -> None:
    with collecting() as collector:
        tracing = otlp_tracing(collector.endpoint, "1")
        running = RunningServer(engine, ServerSettings(listen="127.0.0.1:0"), observers=[tracing])
        try:
            request = pb.GenerateRequest(input=pb.Input(prompt="a"), max_new_tokens=1)
            list(running.stub.Generate(request, metadata=[PARENT]))
        finally:
            running.close()
            tracing.close()  # flushes the remaining spans
    assert sorted(span.name.rpartition("/")[2] for span in collector.spans)[0] == "Generate"
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
