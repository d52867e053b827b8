"""A span for each HTTP request, by OpenTelemetry's semantic conventions for HTTP servers, version 1.38.

It is a child of the caller's span, and the parent of what the request leads to: calls of the explanation server, and of
an upstream. Probes have none. No attribute holds text of a request: neither query nor body.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradellm.transport.spans import Spans
from gradellm_gateway.middleware.request_ids import PROBES
from gradellm_gateway.observability.metrics import METHODS
from gradellm_gateway.upstream.headers import call_metadata

__all__ = ["HttpTracing"]

_TRACE_CONTEXT = (b"traceparent", b"tracestate")
_MAX_VALUE = 256  # characters of a caller's header


class HttpTracing:
    """Middleware that makes a span for each request, and puts it in the caller's place in the trace context.

    Args:
        app: the app behind it.
        spans: makes them.
        paths: which name a span and its route; other paths are attributes alone.
    """

    def __init__(self, app: ASGIApp, spans: Spans, paths: Collection[str]) -> None:
        self._app, self._spans, self._paths = app, spans, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI calls it."""
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind, StatusCode

        method = scope["method"] if scope["method"] in METHODS else "HTTP"
        span = self._spans.tracer.start_span(
            f"{method} {scope['path']}" if scope["path"] in self._paths else method,
            context=self._spans.caller_of(dict(call_metadata(scope["headers"]))),
            kind=SpanKind.SERVER,
            attributes=self._attributes(scope),
        )
        headers = [header for header in scope["headers"] if header[0].lower() not in _TRACE_CONTEXT]
        own = self._spans.trace_context_of(span)
        headers += [(name.encode(), value.encode()) for name, value in own.items()]
        scope = {**scope, "headers": headers}

        async def send_traced(message: Message) -> None:
            if message["type"] == "http.response.start":
                status = message["status"]
                span.set_attribute("http.response.status_code", status)
                if status >= 500:
                    span.set_attribute("error.type", str(status))
                    span.set_status(StatusCode.ERROR)
            await send(message)

        try:
            await self._app(scope, receive, send_traced)
        except BaseException as error:
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(StatusCode.ERROR)
            raise
        finally:
            passed = dict(scope.get("state", {}).get("call_metadata", ()))
            if "x-request-id" in passed:
                span.set_attribute("gradellm.request.id", passed["x-request-id"])
            span.end()

    def _attributes(self, scope: Scope) -> dict[str, Any]:
        attributes = {
            "http.request.method": scope["method"] if scope["method"] in METHODS else "_OTHER",
            "url.path": scope["path"][:_MAX_VALUE],
            "url.scheme": scope.get("scheme", "http"),
            "network.protocol.version": scope.get("http_version", "1.1"),
        }
        if scope["path"] in self._paths:
            attributes["http.route"] = scope["path"]
        if agent := Headers(scope=scope).get("user-agent"):
            attributes["user_agent.original"] = agent[:_MAX_VALUE]
        return attributes
