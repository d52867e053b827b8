"""Prometheus metrics of the gateway.

Generations that pass through it are counted under vLLM's own names and labels, so that dashboards, autoscalers and load
tests made for vLLM read them (vllm-project/vllm, vllm/v1/metrics/loggers.py, 2026). Times in queue, prefill and decode
are the engine's, as it reports them for each request. Requests over HTTP have names of the gateway's own.

The values of labels are bounded: known paths, HTTP methods, statuses, finish reasons, and the operator's model name.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradellm import Event
from gradellm.models import Finished

__all__ = ["METHODS", "GatewayMetrics", "HttpMetrics"]

# Buckets in seconds, as in vLLM.
_FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_TOKEN_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
_REQUEST_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0),
    *(960.0, 1920.0, 7680.0),
)
_COUNT_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
_LABELS = ("model_name", "engine")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_REASONS = {"max_new_tokens": "length"}  # vLLM's names; every other reason is "stop"
_HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "time_to_first_token_seconds": ("Time from a request to its first token.", _FIRST_TOKEN_BUCKETS),
    "inter_token_latency_seconds": ("Time between two tokens.", _TOKEN_BUCKETS),
    "e2e_request_latency_seconds": ("Duration of a finished request.", _REQUEST_BUCKETS),
    "request_queue_time_seconds": ("Time in the engine's queue.", _REQUEST_BUCKETS),
    "request_prefill_time_seconds": ("Prefill time.", _REQUEST_BUCKETS),
    "request_decode_time_seconds": ("Decode time, without attribution.", _REQUEST_BUCKETS),
    "request_prompt_tokens": ("Prompt tokens of a request.", _COUNT_BUCKETS),
    "request_generation_tokens": ("Generated tokens of a request.", _COUNT_BUCKETS),
}
_COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "prompt_tokens": ("Prompt tokens of finished requests.", ()),
    "prompt_tokens_cached": ("Those of them that the prefix cache had.", ()),
    "generation_tokens": ("Generated tokens.", ()),
    "request_success": ("Finished requests, by finish reason.", ("finished_reason",)),
}


class GatewayMetrics:
    """The metrics of one gateway."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.http_requests = Counter(
            "gradellm_gateway_http_requests",
            "HTTP requests, by path, method and status.",
            ("path", "method", "status"),
            registry=self.registry,
        )
        self.http_seconds = Histogram(
            "gradellm_gateway_http_request_duration_seconds",
            "Duration of HTTP requests, streams to their end.",
            ("path",),
            buckets=_REQUEST_BUCKETS,
            registry=self.registry,
        )
        self._running = Gauge("vllm:num_requests_running", "Generations in flight.", _LABELS, registry=self.registry)
        self._counters = {
            name: Counter(f"vllm:{name}", text, (*_LABELS, *labels), registry=self.registry)
            for name, (text, labels) in _COUNTERS.items()
        }
        self._histograms = {
            name: Histogram(f"vllm:{name}", text, _LABELS, buckets=buckets, registry=self.registry)
            for name, (text, buckets) in _HISTOGRAMS.items()
        }

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self.registry)

    async def observed(
        self, events: AsyncGenerator[Event, None], model_name: Callable[[], str]
    ) -> AsyncGenerator[Event, None]:
        """Yield the events of a generation, and count it; `model_name` returns the label of its model."""
        labels = (model_name(), "0")
        started_at = last_at = time.monotonic()
        num_tokens = 0
        running = self._running.labels(*labels)
        running.inc()
        try:
            async with aclosing(events):
                async for event in events:
                    now = time.monotonic()
                    if event.token is not None:
                        name = "inter_token_latency_seconds" if num_tokens else "time_to_first_token_seconds"
                        self._histograms[name].labels(*labels).observe(now - last_at)
                        self._counters["generation_tokens"].labels(*labels).inc()
                        num_tokens, last_at = num_tokens + 1, now
                    if event.finished is not None:
                        self._finish(labels, event.finished, now - started_at)
                    yield event
        finally:
            running.dec()

    def _finish(self, labels: tuple[str, str], finished: Finished, seconds: float) -> None:
        usage, timings = finished.usage, finished.timings
        self._counters["prompt_tokens"].labels(*labels).inc(usage.prompt_tokens)
        self._counters["prompt_tokens_cached"].labels(*labels).inc(usage.reused_prompt_tokens)
        reason = _REASONS.get(finished.reason or "", "stop")
        self._counters["request_success"].labels(*labels, reason).inc()
        values = {
            "e2e_request_latency_seconds": seconds,
            "request_queue_time_seconds": timings.queue_seconds,
            "request_prefill_time_seconds": timings.prefill_seconds,
            "request_decode_time_seconds": timings.decode_seconds,
            "request_prompt_tokens": usage.prompt_tokens,
            "request_generation_tokens": usage.completion_tokens,
        }
        for name, value in values.items():
            self._histograms[name].labels(*labels).observe(value)


class HttpMetrics:
    """Middleware that counts HTTP requests.

    Args:
        app: the app behind it.
        metrics: where they are counted.
        paths: that have a label of their own; all others are "other".
    """

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics, paths: Sequence[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI calls it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at, status = time.monotonic(), 499  # nginx's, for a caller that disconnects first

        async def send_observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        except Exception:
            status = 500
            raise
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.http_requests.labels(path, method, str(status)).inc()
            self._metrics.http_seconds.labels(path).observe(time.monotonic() - started_at)
