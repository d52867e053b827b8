"""OpenTelemetry spans of a process, sent to a collector: what server and gateway share. Needs the extra `[otel]`.

The OTEL_ environment variables for sampling, headers and resource apply.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gradellm.transport.addresses import is_local

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

__all__ = ["Spans", "TracingError", "otlp_spans"]

EXTRA = "spans need the extra: pip install 'gradellm[otel]'"
CLOSE_SECONDS = 3.0


class TracingError(Exception):
    """Spans cannot be exported: the extra is missing, or the endpoint is malformed."""


class Spans:
    """Makes the spans of a process.

    Args:
        processor: where ended spans go.
        service: the name of what makes them, unless the environment has another one.
        scope: the name of the package that makes them.
        version: of both.

    Raises:
        TracingError: if the extra is not installed.
    """

    def __init__(self, processor: SpanProcessor, *, service: str, scope: str, version: str) -> None:
        try:
            from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise TracingError(EXTRA) from error
        own = Resource.create({SERVICE_NAME: service, SERVICE_VERSION: version})
        resource = own.merge(OTELResourceDetector().detect())  # the environment takes precedence
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # see `close`
        self._provider.add_span_processor(processor)
        self._propagator = TraceContextTextMapPropagator()
        self.tracer = self._provider.get_tracer(scope, version)

    def caller_of(self, carrier: Mapping[str, str]) -> Context:
        """The caller's span, of its W3C trace context; an empty context without one."""
        from opentelemetry.context import Context

        return self._propagator.extract(carrier, Context())

    def trace_context_of(self, span: Span) -> dict[str, str]:
        """The W3C trace context that makes calls a span's children: traceparent, and tracestate where it has one."""
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span))
        return carrier

    def close(self, timeout_seconds: float = CLOSE_SECONDS) -> None:
        """Send the remaining spans, within the timeout: an unreachable collector must not hold up the exit."""
        closing = threading.Thread(target=self._provider.shutdown, name="spans-close", daemon=True)
        closing.start()
        closing.join(timeout_seconds)


def otlp_spans(endpoint: str, *, service: str, scope: str, version: str) -> Spans:
    """Spans that go to a collector by OTLP over gRPC, in batches, on a thread of its own.

    Raises:
        TracingError: if the extra is not installed, or the endpoint is not http(s)://HOST:PORT.
    """
    if not endpoint.startswith(("http://", "https://")):
        raise TracingError(f"--otlp-endpoint: {endpoint} is not http://HOST:PORT or https://HOST:PORT")
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingError(EXTRA) from error
    exporter = OTLPSpanExporter(endpoint, channel_options=_channel_options(endpoint))
    return Spans(BatchSpanProcessor(exporter), service=service, scope=scope, version=version)


def _channel_options(endpoint: str) -> Any:  # noqa: ANN401 (the exporter's annotation is wrong: values may be numbers)
    """Reach a collector on this machine directly: gRPC would use the environment's proxy."""
    return (("grpc.enable_http_proxy", 0),) if is_local(urlsplit(endpoint).hostname or "") else ()
