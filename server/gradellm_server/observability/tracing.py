"""A span a call, sent to an OpenTelemetry collector; the extra `[otel]`.

A call's span is a child of the caller's, where the metadata says one (`traceparent`). It has children queue, prefill,
decode and attribution, as long as `finished` says that they took. A call's steps and explanations alternate; its
children are laid one after the other all the same, so that a trace shows what the time went into, not when each
millisecond was.

Attributes follow OpenTelemetry's conventions for generative models and RPCs where there is one, and begin with gradellm
where there is none. No text is among them. The environment's OTEL_ variables hold: sampling, headers, resource.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gradellm_server.observability.call import Call, CallObserver
from gradellm_server.settings import is_local

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor

EXTRA = "spans need the extra: pip install 'gradellm[server,otel]'"
CLOSE_SECONDS = 3.0
SERVICE = "gradellm.v1.ExplainerService"
SAMPLING = {  # on the wire, and in the conventions
    "max_new_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_k": "gen_ai.request.top_k",
    "top_p": "gen_ai.request.top_p",
    "seed": "gen_ai.request.seed",
}
# Codes that are the server's own fault, by the conventions for spans of gRPC servers.
FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")


class TracingError(Exception):
    """Spans cannot be made."""


class Tracing(CallObserver):
    """A watcher of calls. Tell others of a call's end after it: it may give the call its trace id."""

    def __init__(self, processor: SpanProcessor, version: str) -> None:
        """Send spans to `processor`.

        Raises:
            TracingError: where the extra is not installed.
        """
        try:
            from opentelemetry import trace
            from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise TracingError(EXTRA) from error
        self._trace = trace
        own = Resource.create({SERVICE_NAME: "gradellm", SERVICE_VERSION: version})
        resource = own.merge(OTELResourceDetector().detect())  # the environment's word counts for more
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # see `close`
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("gradellm_server", version)
        self._propagator = TraceContextTextMapPropagator()
        self._model = ""

    def serve(self, model: str) -> None:
        """Name the model that is served."""
        self._model = model

    def close(self, timeout_seconds: float = CLOSE_SECONDS) -> None:
        """Send what has not been sent; a collector that does not answer holds up the server's end for no longer."""
        closing = threading.Thread(target=self._provider.shutdown, name="spans-close", daemon=True)
        closing.start()
        closing.join(timeout_seconds)

    def ended(self, call: Call) -> None:
        """See `calls.Watcher`. All spans are made now, with the times that they had."""
        end = time.time_ns()
        began = end - _nanoseconds(call.seconds)
        span = self._tracer.start_span(
            f"{SERVICE}/{call.method}",
            context=self._caller(call),
            kind=self._trace.SpanKind.SERVER,
            attributes={**self._attributes(call), "gradellm.request.id": call.id},
            start_time=began,
        )
        call.trace_id = f"{span.get_span_context().trace_id:032x}"
        if call.facts.first_token_at is not None:
            span.add_event("first token", timestamp=began + _nanoseconds(call.facts.first_token_at - call.began))
        if call.code in FAULTS:
            span.set_status(self._trace.StatusCode.ERROR, call.reason or call.code)
        if call.facts.timings is not None:
            self._children(call, self._trace.set_span_in_context(span), began)
        span.end(end)

    def _children(self, call: Call, parent: Context, began: int) -> None:
        timings = call.facts.timings
        for name in ("queue", "prefill", "decode", "attribution"):
            if seconds := getattr(timings, name):
                child = self._tracer.start_span(name, context=parent, start_time=began)
                began += _nanoseconds(seconds)
                child.end(began)

    def _caller(self, call: Call) -> Context:
        """What the caller's metadata says of its own span."""
        from opentelemetry.context import Context

        carrier = {key: value for key, value in call.metadata if isinstance(value, str)}
        return self._propagator.extract(carrier, Context())

    def _attributes(self, call: Call) -> dict[str, Any]:
        facts = call.facts
        told: dict[str, Any] = {
            "rpc.system.name": "grpc",
            "rpc.method": f"{SERVICE}/{call.method}",
            "rpc.response.status_code": call.code,
        }
        if call.code != "OK":
            told["error.type"] = call.reason or call.code
        if call.client is not None:
            told["gradellm.client"] = call.client
        if not facts.num_prompt_tokens:
            return told
        told |= {
            "gen_ai.operation.name": self._operation(call),
            "gen_ai.provider.name": "gradellm",
            "gen_ai.request.model": self._model,
            "gen_ai.response.model": self._model,
            "gen_ai.response.id": call.id,
            "gen_ai.usage.input_tokens": facts.num_prompt_tokens,
            "gen_ai.usage.output_tokens": facts.num_tokens if facts.generates else 0,
            "gen_ai.usage.cache_read.input_tokens": facts.num_reused_tokens,
            "gradellm.attributed_tokens": facts.num_attributed,
        }
        if facts.generates:
            told |= {SAMPLING[name]: value for name, value in facts.sampling.items()}
        if facts.method:
            told["gradellm.method"] = facts.method
        if facts.finish_reason:
            told["gen_ai.response.finish_reasons"] = (facts.finish_reason,)
        if facts.first_token_at is not None:
            told["gen_ai.response.time_to_first_chunk"] = facts.first_token_at - call.began
        return told

    @staticmethod
    def _operation(call: Call) -> str:
        if call.method == "Generate":
            return "chat" if call.facts.is_chat else "text_completion"
        return call.method.lower()


def exporting(endpoint: str, version: str) -> Tracing:
    """Spans that go to a collector by OTLP over gRPC, in batches, on a thread of their own.

    Raises:
        TracingError: where the extra is not installed, or the endpoint is no http(s)://HOST:PORT.
    """
    if not endpoint.startswith(("http://", "https://")):
        raise TracingError(f"{endpoint} is not http://HOST:PORT or https://HOST:PORT")
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingError(EXTRA) from error
    exporter = OTLPSpanExporter(endpoint, channel_options=_channel_options(endpoint))
    return Tracing(BatchSpanProcessor(exporter), version)


def _channel_options(endpoint: str) -> Any:  # noqa: ANN401 (the exporter's annotation is wrong: values may be numbers)
    """A collector on this machine is reached directly: gRPC would send spans to a proxy of the environment."""
    return (("grpc.enable_http_proxy", 0),) if is_local(f"{urlsplit(endpoint).hostname}:0") else ()


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
