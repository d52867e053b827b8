"""An OpenTelemetry collector on the loopback interface, which keeps the spans that it gets by OTLP over gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

pytest.importorskip("opentelemetry.proto", reason="the extra [otel] is not installed")

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """The collector's service.

    Attributes:
        endpoint: its URL.
        requests: that it got.
    """

    endpoint: str

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def Export(self, request: Any, context: object) -> Any:  # noqa: N802
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[Any]:
        parts = [each for request in self.requests for each in request.resource_spans]
        return [span for part in parts for scope in part.scope_spans for span in scope.spans]


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that runs until the context is left."""
    collector = Collector()
    backend = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, backend)  # type: ignore[no-untyped-call]
    collector.endpoint = f"http://localhost:{backend.add_insecure_port('127.0.0.1:0')}"
    backend.start()
    try:
        yield collector
    finally:
        backend.stop(0).wait()
