"""Spans of a process: trace context in and out, resources, and collectors that are there, behind a proxy, or not."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra [otel] is not installed")

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gradellm.transport.spans import Spans, TracingError, otlp_spans
from support.http.proxy import FakeProxy, proxy
from support.otlp_collector import collecting

__all__ = ["proxy"]

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def of_endpoint(endpoint: str) -> Spans:
    return otlp_spans(endpoint, service="a-service", scope="a_package", version="1.2.3")


@pytest.mark.parametrize("flags", ["01", "00"])
def test_a_span_takes_the_callers_place_in_the_trace_context(flags: str) -> None:
    exporter = InMemorySpanExporter()
    spans = Spans(SimpleSpanProcessor(exporter), service="a-service", scope="a_package", version="1.2.3")
    carrier = {"traceparent": f"00-{TRACE}-{SPAN}-{flags}", "tracestate": "vendor=1"}
    span = spans.tracer.start_span("name", context=spans.caller_of(carrier))
    passed = spans.trace_context_of(span)
    span.end()
    version, trace, own, own_flags = passed["traceparent"].split("-")
    assert (version, trace, own_flags, passed["tracestate"]) == ("00", TRACE, flags, "vendor=1")
    assert own != SPAN
    exported = exporter.get_finished_spans()
    assert len(exported) == int(flags)  # a caller that does not sample its trace has no spans here either
    for each in exported:
        assert each.parent is not None
        assert f"{each.parent.span_id:016x}" == SPAN
        assert each.resource.attributes["service.name"] == "a-service"
        assert each.resource.attributes["service.version"] == "1.2.3"


@pytest.mark.parametrize("carrier", [{}, {"traceparent": "none"}, {"traceparent": f"00-{'0' * 32}-{SPAN}-01"}])
def test_without_a_callers_span_a_trace_begins(carrier: dict[str, str]) -> None:
    spans = Spans(SimpleSpanProcessor(InMemorySpanExporter()), service="s", scope="p", version="1")
    span = spans.tracer.start_span("name", context=spans.caller_of(carrier))
    assert int(spans.trace_context_of(span)["traceparent"].split("-")[1], 16) != 0


@pytest.mark.parametrize("wrong", ["localhost:4317", "ftp://x"])
def test_an_endpoint_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(TracingError, match="http"):
        of_endpoint(wrong)


def test_an_unreachable_collector_does_not_delay_close() -> None:
    spans = of_endpoint("http://127.0.0.1:1")
    spans.tracer.start_span("name").end()
    began = time.monotonic()
    spans.close(0.2)
    assert time.monotonic() - began < 2


def test_a_local_collector_is_reached_without_a_proxy(proxy: FakeProxy) -> None:
    with collecting() as collector:
        spans = of_endpoint(collector.endpoint)
        spans.tracer.start_span("name").end()
        spans.close()
    assert [span.name for span in collector.spans] == ["name"]
    assert proxy.heard == []
