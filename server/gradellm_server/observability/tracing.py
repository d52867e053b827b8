"""OpenTelemetry tracing: one span for each call, sent to a collector; needs the extra `[otel]`.

A call's span is a child of the caller's span, if the metadata has one (`traceparent`). Its child is what the model did,
such as `chat MODEL`, whose children queue, prefill, decode and attribution have the durations that `finished` reports.
Decode steps and attribution alternate, but these are laid out one after another: a trace shows where the time went, not
the moment of each step.

Attributes follow OpenTelemetry's semantic conventions for generative AI and RPC; those without a convention begin with
`gradellm`. None holds text. The OTEL_ environment variables for sampling, headers and resource apply.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from gradellm.transport.spans import Spans, otlp_spans
from gradellm_server.observability.call import Call, CallObserver

if TYPE_CHECKING:
    from opentelemetry.context import Context

SERVICE = "gradellm.v1.ExplainerService"
SAMPLING_ATTRIBUTES = {  # field on the wire: attribute
    "max_new_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_k": "gen_ai.request.top_k",
    "top_p": "gen_ai.request.top_p",
    "seed": "gen_ai.request.seed",
}
FINISH_REASONS = {"max_new_tokens": "length"}  # the conventions' names; every other reason is "stop"
# Codes that set a span's status to ERROR, by the conventions for spans of gRPC servers.
ERROR_CODES = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")


class Tracing(CallObserver):
    """Makes a span for each call. It must come before the access log, since it may set the call's trace id."""

    def __init__(self, spans: Spans) -> None:
        from opentelemetry import trace

        self._trace, self._spans, self._tracer = trace, spans, spans.tracer
        self._model = ""

    def set_model(self, model: str) -> None:
        """Set the name of the model that is served."""
        self._model = model

    def close(self) -> None:
        """Send the remaining spans, within seconds."""
        self._spans.close()

    def on_end(self, call: Call) -> None:
        """See `CallObserver`. All spans of the call are made now, with their times in the past."""
        end = time.time_ns()
        start = end - _nanoseconds(call.seconds)
        span = self._tracer.start_span(
            f"{SERVICE}/{call.method}",
            context=self._caller(call),
            kind=self._trace.SpanKind.SERVER,
            attributes={**_rpc_attributes(call), "gradellm.request.id": call.id},
            start_time=start,
        )
        call.trace_id = f"{span.get_span_context().trace_id:032x}"
        if call.stats.first_token_at is not None:
            span.add_event("first token", timestamp=start + _nanoseconds(call.stats.first_token_at - call.started_at))
        if call.code in ERROR_CODES:
            span.set_status(self._trace.StatusCode.ERROR, call.reason or call.code)
        if call.stats.num_prompt_tokens:
            self._inference(call, self._trace.set_span_in_context(span), start, end)
        span.end(end)

    def _inference(self, call: Call, parent: Context, start: int, end: int) -> None:
        """Make the span of what the model did, named and described by the conventions for generative AI."""
        operation = self._operation(call)
        span = self._tracer.start_span(
            f"{operation} {self._model}",
            context=parent,
            kind=self._trace.SpanKind.INTERNAL,  # the model runs in this process
            attributes=self._attributes(call, operation),
            start_time=start,
        )
        if call.code in ERROR_CODES:
            span.set_status(self._trace.StatusCode.ERROR, call.reason or call.code)
        if call.stats.timings is not None:
            self._children(call, self._trace.set_span_in_context(span), start)
        span.end(end)

    def _children(self, call: Call, parent: Context, start: int) -> None:
        timings = call.stats.timings
        for name in ("queue", "prefill", "decode", "attribution"):
            if seconds := getattr(timings, name):
                child = self._tracer.start_span(name, context=parent, start_time=start)
                start += _nanoseconds(seconds)
                child.end(start)

    def _caller(self, call: Call) -> Context:
        """The caller's span, from the metadata."""
        return self._spans.caller_of({key: value for key, value in call.metadata if isinstance(value, str)})

    def _attributes(self, call: Call, operation: str) -> dict[str, Any]:
        stats = call.stats
        attributes: dict[str, Any] = {} if call.code == "OK" else {"error.type": call.reason or call.code}
        attributes |= {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "gradellm",
            "gen_ai.request.model": self._model,
            "gen_ai.response.model": self._model,
            "gen_ai.response.id": call.id,
            "gen_ai.usage.input_tokens": stats.num_prompt_tokens,
            "gen_ai.usage.output_tokens": stats.num_tokens if stats.generates else 0,
            "gen_ai.usage.cache_read.input_tokens": stats.num_reused_tokens,
            "gradellm.attributed_tokens": stats.num_attributed,
        }
        if stats.generates:
            attributes |= {SAMPLING_ATTRIBUTES[name]: value for name, value in stats.sampling.items()}
        if stats.method:
            attributes["gradellm.method"] = stats.method
        if stats.finish_reason:
            reason = FINISH_REASONS.get(stats.finish_reason, "stop")
            attributes["gen_ai.response.finish_reasons"] = (reason,)
            attributes["gradellm.finish_reason"] = stats.finish_reason
        if stats.first_token_at is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = stats.first_token_at - call.started_at
        return attributes

    @staticmethod
    def _operation(call: Call) -> str:
        if call.method == "Generate":
            return "chat" if call.stats.is_chat else "text_completion"
        return call.method.lower()


def _rpc_attributes(call: Call) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "rpc.system.name": "grpc",
        "rpc.method": f"{SERVICE}/{call.method}",
        "rpc.response.status_code": call.code,
    }
    if call.code != "OK":
        attributes["error.type"] = call.reason or call.code
    if call.client is not None:
        attributes["gradellm.client"] = call.client
    return attributes


def otlp_tracing(endpoint: str, version: str) -> Tracing:
    """Tracing that exports to a collector by OTLP over gRPC.

    Raises:
        TracingError: if the extra is not installed, or the endpoint is not http(s)://HOST:PORT.
    """
    return Tracing(otlp_spans(endpoint, service="gradellm", scope="gradellm_server", version=version))


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
