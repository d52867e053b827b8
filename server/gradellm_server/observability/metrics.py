"""Prometheus metrics, from the calls and the state of the engine.

Metrics that vLLM has as well have vLLM's names and buckets after the prefix `gradellm_`, so that dashboards and alert
rules can be shared (vllm-project/vllm, vllm/v1/metrics/loggers.py, 2026). Metrics of attribution are our own.

The values of labels are bounded: RPCs, codes, reasons, methods and metrics are fixed sets, and clients are named by the
operator. No label comes from the content of a request.

A row of a table below declares a metric. Its value is set in `Metrics`, from the calls, or in `_values`, from the
engine; an engine metric without a value there is exported without samples.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from google.protobuf.message import Message
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gradellm._version import __version__
from gradellm_engine import Engine, gpu_memory, software_versions
from gradellm_server.engine_loop.engine_thread import EngineThread
from gradellm_server.observability.call import Call, CallObserver
from gradellm_server.observability.call_stats import (
    EVALUATION_METRICS,
    FINISH_REASONS,
    RPC_NAMES,
    STREAMING_RPC_NAMES,
    VERDICTS,
    CallStats,
)

PREFIX = "gradellm"
# Buckets in seconds, as in vLLM.
FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
REQUEST_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0),
    *(960.0, 1920.0, 7680.0),
)
# Not in vLLM. The attribution of a whole request can be as short as one step of a small model.
ATTRIBUTION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, *REQUEST_BUCKETS)
NOISE_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
LAG_BUCKETS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
# A call that ends with one of these before its first response was refused, and did not fail.
REFUSAL_CODES = ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED", "PERMISSION_DENIED", "UNAVAILABLE")


class Family(NamedTuple):
    """A metric family: help text, names of labels and, for a histogram, the upper bounds of its buckets."""

    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


RPC = ("rpc",)
# Labels: none or RPC, which `Metrics._initialize_labels` counts on.
HISTOGRAMS = {
    "time_to_first_token_seconds": Family(
        "Time from the start of a Generate call to its first token.", buckets=FIRST_TOKEN_BUCKETS
    ),
    "inter_token_latency_seconds": Family(
        "Time between two tokens of a Generate call, as they are sent.", buckets=TOKEN_BUCKETS
    ),
    "request_time_per_output_token_seconds": Family(
        "Mean time between tokens of a finished Generate call.", buckets=TOKEN_BUCKETS
    ),
    "e2e_request_latency_seconds": Family("Duration of a finished stream.", RPC, REQUEST_BUCKETS),
    "request_queue_time_seconds": Family("Time that a finished stream waited in the queue.", RPC, REQUEST_BUCKETS),
    "request_prefill_time_seconds": Family("Prefill time of a finished stream.", RPC, REQUEST_BUCKETS),
    "request_decode_time_seconds": Family(
        "Decode time of a finished stream, without attribution.", RPC, REQUEST_BUCKETS
    ),
    "attribution_seconds": Family("Attribution time of a finished stream.", RPC, ATTRIBUTION_BUCKETS),
    "attribution_lag_tokens": Family(
        "Tokens of a Generate call sent between a token and its scores.", buckets=LAG_BUCKETS
    ),
    "follow_lag_seconds": Family(
        "Time from the arrival of a token of a Follow call to its scores.", buckets=FIRST_TOKEN_BUCKETS
    ),
    "follow_noise": Family(
        "Of a finished Follow call: noise in the other engine's logits, in nats.", buckets=NOISE_BUCKETS
    ),
    "evaluation_seconds": Family("Duration of a finished evaluation.", buckets=REQUEST_BUCKETS),
}
COUNTERS = {
    "prompt_tokens": Family("Prompt tokens, computed or taken from the prefix cache.", RPC),
    "generation_tokens": Family("Generated tokens that were sent.", RPC),
    "attribution_tokens": Family("Tokens whose scores were sent.", ("method",)),
    "request_success": Family("Finished streams, by finish reason.", ("rpc", "finished_reason")),
    "follow_verdicts": Family("Finished Follow calls, by verdict on the other engine's model.", ("verdict",)),
    "rpc_requests": Family("Calls that ended, by gRPC status and client.", ("rpc", "code", "client")),
    "rpc_errors": Family("Calls that ended with an error of the server's own, by reason.", ("reason",)),
    "rpc_refused": Family("Calls refused before their first response, by reason.", ("reason",)),
    "evaluation_items": Family("Evaluation items that were sent.", ("metric",)),
}
GAUGES = {"evaluations_running": Family("Evaluate calls in flight.")}
# Read from the engine at each scrape.
ENGINE_GAUGES = {
    "num_requests_running": Family("Running requests."),
    "num_requests_waiting": Family("Queued requests."),
    "num_requests_followed": Family("Running requests that follow another engine."),
    "followed_tokens_pending": Family("Tokens of followed completions that have come and are not explained."),
    "max_running_requests": Family("Limit of running requests."),
    "max_followed_requests": Family("Limit of running requests that follow another engine."),
    "max_queued_requests": Family("Limit of queued requests."),
    "kv_cache_usage_perc": Family("Share of the KV cache that running requests hold, from 0 to 1."),
    "kv_cache_tokens": Family("Size of the KV cache in tokens."),
    "engine_heartbeat_age_seconds": Family("Seconds since the engine thread's last heartbeat."),
}
# One value for each GPU, counting all processes that use it.
DEVICE_GAUGES = {
    "device_memory_bytes": Family("Memory of a GPU that the model uses.", ("device",)),
    "device_memory_free_bytes": Family("Free memory of that GPU.", ("device",)),
}
ENGINE_COUNTERS = {
    "prefix_cache_queries": Family("Prompt tokens looked up in the prefix cache."),
    "prefix_cache_hits": Family("Prompt tokens found in the prefix cache."),
}
INFOS = {
    "build_info": Family("Versions; always 1.", ("version", "python", "torch", "transformers", "tokenizers")),
    "model_info": Family(
        "The served model; always 1.", ("name", "revision", "family", "dtype", "quantization", "device")
    ),
}
PHASE_HISTOGRAMS = {  # field of `Timings`: histogram
    "queue": "request_queue_time_seconds",
    "prefill": "request_prefill_time_seconds",
    "decode": "request_decode_time_seconds",
}


class Metrics(CallObserver):
    """All metrics, in a registry of their own; observes calls.

    Attributes:
        registry: for the metrics server.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # Prometheus has no use for these series
        self.registry = registry = CollectorRegistry()
        self._engine = EngineCollector()
        registry.register(self._engine)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        options: dict[str, Any] = {"namespace": PREFIX, "registry": registry}
        self._histograms = {
            name: Histogram(name, family.text, family.labels, buckets=family.buckets, **options)
            for name, family in HISTOGRAMS.items()
        }
        self._counters = {
            name: Counter(name, family.text, family.labels, **options) for name, family in COUNTERS.items()
        }
        self._gauges = {name: Gauge(name, family.text, family.labels, **options) for name, family in GAUGES.items()}
        self._initialize_labels()

    def _initialize_labels(self) -> None:
        """Export label values that will occur as zeros from the start: a rate needs a value to rise from."""
        for rpc in STREAMING_RPC_NAMES:
            for name in ("prompt_tokens", "generation_tokens"):
                self._counters[name].labels(rpc)
            for name, family in HISTOGRAMS.items():
                if family.labels:
                    self._histograms[name].labels(rpc)
            for reason in FINISH_REASONS:
                self._counters["request_success"].labels(rpc, reason)
        for rpc in RPC_NAMES:
            self._counters["rpc_requests"].labels(rpc, "OK", "")
        for verdict in VERDICTS:
            self._counters["follow_verdicts"].labels(verdict)
        for metric in EVALUATION_METRICS:
            self._counters["evaluation_items"].labels(metric)

    def attach_engine(self, engine: Engine, thread: EngineThread) -> None:
        """Export this engine's metrics, from the next scrape on."""
        self._engine.attach(engine, thread)

    # Calls -----------------------------------------------------------------------------------------------------------

    def on_start(self, call: Call) -> None:
        """See `CallObserver`."""
        if call.method == "Evaluate":
            self._gauges["evaluations_running"].inc()

    def on_response(self, call: Call, response: Message) -> None:
        """See `CallObserver`."""
        stats = call.stats
        match stats.kind:
            case "token":
                self._token(call, stats)
            case "attribution":
                self._counters["attribution_tokens"].labels(stats.method).inc()
                if call.method == "Generate" and stats.lag_tokens is not None:
                    self._histograms["attribution_lag_tokens"].observe(stats.lag_tokens)
                if stats.lag_seconds is not None:
                    self._histograms["follow_lag_seconds"].observe(stats.lag_seconds)
            case "item":
                self._counters["evaluation_items"].labels(stats.metric).inc()
            case "finished" if stats.num_tokens == 0:
                self._counters["prompt_tokens"].labels(call.method).inc(stats.num_prompt_tokens)

    def _token(self, call: Call, stats: CallStats) -> None:
        if stats.generates:
            self._counters["generation_tokens"].labels(call.method).inc()
        if stats.gap_seconds is None:  # the first token: the prompt has been read
            self._counters["prompt_tokens"].labels(call.method).inc(stats.num_prompt_tokens)
            if call.method == "Generate" and stats.first_token_at is not None:
                self._histograms["time_to_first_token_seconds"].observe(stats.first_token_at - call.started_at)
        elif call.method == "Generate":
            self._histograms["inter_token_latency_seconds"].observe(stats.gap_seconds)

    def on_end(self, call: Call) -> None:
        """See `CallObserver`."""
        if call.method == "Evaluate":
            self._gauges["evaluations_running"].dec()
        self._counters["rpc_requests"].labels(call.method, call.code, call.client or "").inc()
        if call.reason:
            self._counters["rpc_errors"].labels(call.reason).inc()
        if call.reason and call.code in REFUSAL_CODES and not call.num_responses:
            self._counters["rpc_refused"].labels(call.reason).inc()
        if call.code == "OK" and call.stats.timings is not None:
            self._finished(call, call.stats)

    def _finished(self, call: Call, stats: CallStats) -> None:
        self._counters["request_success"].labels(call.method, stats.finish_reason).inc()
        self._histograms["e2e_request_latency_seconds"].labels(call.method).observe(call.seconds)
        for phase, name in PHASE_HISTOGRAMS.items():
            self._histograms[name].labels(call.method).observe(getattr(stats.timings, phase))
        if stats.timings is not None and stats.num_attributed:
            self._histograms["attribution_seconds"].labels(call.method).observe(stats.timings.attribution)
        if stats.verdict:
            self._counters["follow_verdicts"].labels(stats.verdict).inc()
        if stats.noise is not None:
            self._histograms["follow_noise"].observe(stats.noise)
        if call.method == "Evaluate":
            self._histograms["evaluation_seconds"].observe(call.seconds)
        if call.method == "Generate" and stats.num_tokens > 1 and stats.first_token_at and stats.last_token_at:
            seconds = stats.last_token_at - stats.first_token_at
            self._histograms["request_time_per_output_token_seconds"].observe(seconds / (stats.num_tokens - 1))


class EngineCollector(Collector):
    """The engine's state at the moment of a scrape.

    It is read on the scrape's thread without a lock, one number after another: the values may be a pass old and need
    not be of the same pass, and a scrape does not delay the engine.
    """

    def __init__(self) -> None:
        self._attached: tuple[Engine, EngineThread] | None = None

    def attach(self, engine: Engine, thread: EngineThread) -> None:
        """Read this engine and its thread from now on."""
        self._attached = engine, thread

    def collect(self) -> Iterator[Metric]:
        """All families; without values until an engine is attached."""
        values = {} if self._attached is None else _values(*self._attached)
        for name, declared in ENGINE_GAUGES.items():
            yield GaugeMetricFamily(f"{PREFIX}_{name}", declared.text, value=values.get(name))
        for name, declared in ENGINE_COUNTERS.items():
            yield CounterMetricFamily(f"{PREFIX}_{name}", declared.text, value=values.get(name))
        memory = {} if self._attached is None else gpu_memory(self._attached[0].devices)
        for name, declared in DEVICE_GAUGES.items():
            family = GaugeMetricFamily(f"{PREFIX}_{name}", declared.text, labels=declared.labels)
            for device, (free, total) in memory.items():
                family.add_metric([device], free if "free" in name else total)
            yield family
        for name, declared in INFOS.items():
            family = GaugeMetricFamily(f"{PREFIX}_{name}", declared.text, labels=declared.labels)
            if self._attached is not None:
                family.add_metric(_label_values(name, declared.labels, self._attached[0]), 1)
            yield family


def _label_values(name: str, labels: Sequence[str], engine: Engine) -> list[str]:
    """The labels of an info metric."""
    if name == "model_info":
        return [str(getattr(engine.info, label)) for label in labels]
    versions = {"version": __version__, "python": platform.python_version(), **software_versions()}
    return [versions[label] for label in labels]


def _values(engine: Engine, thread: EngineThread) -> dict[str, float]:
    queries, hits = engine.scheduler.prefix_cache_stats
    return {
        "num_requests_running": thread.num_running,
        "num_requests_waiting": thread.num_waiting,
        "max_running_requests": thread.max_running,
        "num_requests_followed": thread.num_followed,
        "followed_tokens_pending": thread.num_unread_tokens,
        "max_followed_requests": thread.max_followed,
        "max_queued_requests": thread.max_queued,
        "kv_cache_usage_perc": engine.scheduler.num_reserved_tokens / engine.kv_tokens,
        "kv_cache_tokens": engine.kv_tokens,
        "engine_heartbeat_age_seconds": thread.heartbeat_age,
        "prefix_cache_queries": queries,
        "prefix_cache_hits": hits,
    }
