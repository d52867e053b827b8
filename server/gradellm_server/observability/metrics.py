"""What Prometheus is told: every metric of the server, counted from what calls and the engine do.

Names and buckets of what other engines measure, too, are vLLM's, after our prefix, so that boards and rules for one
serve the other (vllm-project/vllm, vllm/v1/metrics/loggers.py, 2026). What only an explaining server has is ours.

Labels are bounded: names of calls, codes, reasons, methods and metrics are the server's own words, and a client's name
is one of the operator's. Nothing of a request's content is ever a label.
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
from gradellm_engine import Engine
from gradellm_engine.model.loader import software_versions
from gradellm_engine.utils.memory import gpu_memory
from gradellm_server.engine_thread import EngineThread
from gradellm_server.observability.call import Call, CallObserver
from gradellm_server.observability.call_stats import EVALUATION_METRICS, FINISH_REASONS, CallStats
from gradellm_server.rpc.conversion import SINGLES, STREAMS

PREFIX = "gradellm"
# vLLM's, in seconds.
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
# Ours: explaining a request may take no longer than a step of a small model.
ATTRIBUTION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, *REQUEST_BUCKETS)
LAG_BUCKETS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
# Codes of calls that were refused, rather than failed, where nothing had been answered yet.
REFUSING = ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED", "PERMISSION_DENIED", "UNAVAILABLE")


class Family(NamedTuple):
    """A metric: what it says, its labels and, of a histogram, the upper ends of its buckets."""

    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


RPC = ("rpc",)
HISTOGRAMS = {
    "time_to_first_token_seconds": Family(
        "From a Generate call's beginning to its first token.", buckets=FIRST_TOKEN_BUCKETS
    ),
    "inter_token_latency_seconds": Family(
        "Between two tokens of a Generate call, as they are sent.", buckets=TOKEN_BUCKETS
    ),
    "request_time_per_output_token_seconds": Family(
        "The mean of it over a finished Generate call.", buckets=TOKEN_BUCKETS
    ),
    "e2e_request_latency_seconds": Family("A finished stream, from its beginning to its end.", RPC, REQUEST_BUCKETS),
    "request_queue_time_seconds": Family("What a finished stream waited for a place.", RPC, REQUEST_BUCKETS),
    "request_prefill_time_seconds": Family("What a finished stream's prompt took to read.", RPC, REQUEST_BUCKETS),
    "request_decode_time_seconds": Family("A finished stream's steps, without attribution.", RPC, REQUEST_BUCKETS),
    "attribution_seconds": Family("What explaining a finished stream's tokens took.", RPC, ATTRIBUTION_BUCKETS),
    "attribution_lag_tokens": Family(
        "Tokens of a Generate call that were sent between a token and its scores.", buckets=LAG_BUCKETS
    ),
    "evaluation_seconds": Family("A finished evaluation.", buckets=REQUEST_BUCKETS),
}
COUNTERS = {
    "prompt_tokens": Family("Tokens of prompts, read or reused.", RPC),
    "generation_tokens": Family("Tokens that the model chose and that were sent.", RPC),
    "attribution_tokens": Family("Tokens whose scores were sent.", ("method",)),
    "request_success": Family("Streams that finished, by why they did.", ("rpc", "finished_reason")),
    "rpc_requests": Family("Calls that ended, by gRPC status and client.", ("rpc", "code", "client")),
    "rpc_errors": Family("Calls that ended with an error that the server told, by reason.", ("reason",)),
    "rpc_refused": Family("Calls that were refused before anything was answered.", ("reason",)),
    "evaluation_items": Family("Results of evaluations that were sent.", ("metric",)),
}
GAUGES = {"evaluations_running": Family("Evaluate calls in flight.")}
# Read off the engine at a scrape.
ENGINE_GAUGES = {
    "num_requests_running": Family("Streams that run."),
    "num_requests_waiting": Family("Requests that wait for a place."),
    "max_running_requests": Family("Streams that run at most."),
    "max_queued_requests": Family("Requests that wait at most."),
    "kv_cache_usage_perc": Family("Share of the places for keys and values that running streams have; 1 is all."),
    "kv_cache_tokens": Family("Places for keys and values, in tokens."),
    "engine_heartbeat_age_seconds": Family("Since the engine thread last showed that it lives."),
}
# A GPU each, by all processes that use it.
DEVICE_GAUGES = {
    "device_memory_bytes": Family("Memory of a GPU that the model is on.", ("device",)),
    "device_memory_free_bytes": Family("What is free of it: neither the server's nor another process's.", ("device",)),
}
ENGINE_COUNTERS = {
    "prefix_cache_queries": Family("Tokens of requests whose beginning was looked for among earlier ones."),
    "prefix_cache_hits": Family("Of them, tokens that an earlier request had read."),
}
INFOS = {
    "build_info": Family("Versions; always 1.", ("version", "python", "torch", "transformers", "tokenizers")),
    "model_info": Family(
        "The model that is served; always 1.", ("name", "revision", "family", "dtype", "quantization", "device")
    ),
}
PHASES = {  # what `finished` says a stream took, and where it is told
    "queue": "request_queue_time_seconds",
    "prefill": "request_prefill_time_seconds",
    "decode": "request_decode_time_seconds",
}


class Metrics(CallObserver):
    """All metrics, in a registry of their own; a watcher of calls.

    Attributes:
        registry: what a scrape reads.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the number of series, and Prometheus makes nothing of them
        self.registry = registry = CollectorRegistry()
        self._engine = EngineCollector()
        registry.register(self._engine)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        made: dict[str, Any] = {"namespace": PREFIX, "registry": registry}
        self._histograms = {
            name: Histogram(name, its.text, its.labels, buckets=its.buckets, **made) for name, its in HISTOGRAMS.items()
        }
        self._counters = {name: Counter(name, its.text, its.labels, **made) for name, its in COUNTERS.items()}
        self._gauges = {name: Gauge(name, its.text, its.labels, **made) for name, its in GAUGES.items()}
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Show what is known to come before it comes: a rate needs a value to rise from."""
        for rpc in STREAMS:
            for name in ("prompt_tokens", "generation_tokens"):
                self._counters[name].labels(rpc)
            for name, its in HISTOGRAMS.items():
                if its.labels:
                    self._histograms[name].labels(rpc)
            for reason in FINISH_REASONS:
                self._counters["request_success"].labels(rpc, reason)
        for rpc in (*STREAMS, *SINGLES, "GetServerInfo"):
            self._counters["rpc_requests"].labels(rpc, "OK", "")
        for metric in EVALUATION_METRICS:
            self._counters["evaluation_items"].labels(metric)

    def watch_engine(self, engine: Engine, thread: EngineThread) -> None:
        """Tell of this engine, from the next scrape on."""
        self._engine.watch(engine, thread)

    # Calls -----------------------------------------------------------------------------------------------------------

    def began(self, call: Call) -> None:
        """See `calls.Watcher`."""
        if call.method == "Evaluate":
            self._gauges["evaluations_running"].inc()

    def answered(self, call: Call, answer: Message) -> None:
        """See `calls.Watcher`."""
        facts = call.facts
        match facts.kind:
            case "token":
                self._token(call, facts)
            case "attribution":
                self._counters["attribution_tokens"].labels(facts.method).inc()
                if call.method == "Generate" and facts.lag_tokens is not None:
                    self._histograms["attribution_lag_tokens"].observe(facts.lag_tokens)
            case "item":
                self._counters["evaluation_items"].labels(facts.metric).inc()
            case "finished" if facts.num_tokens == 0:
                self._counters["prompt_tokens"].labels(call.method).inc(facts.num_prompt_tokens)

    def _token(self, call: Call, facts: CallStats) -> None:
        if facts.generates:
            self._counters["generation_tokens"].labels(call.method).inc()
        if facts.gap_seconds is None:  # the first: the prompt has been read
            self._counters["prompt_tokens"].labels(call.method).inc(facts.num_prompt_tokens)
            if call.method == "Generate" and facts.first_token_at is not None:
                self._histograms["time_to_first_token_seconds"].observe(facts.first_token_at - call.began)
        elif call.method == "Generate":
            self._histograms["inter_token_latency_seconds"].observe(facts.gap_seconds)

    def ended(self, call: Call) -> None:
        """See `calls.Watcher`."""
        if call.method == "Evaluate":
            self._gauges["evaluations_running"].dec()
        self._counters["rpc_requests"].labels(call.method, call.code, call.client or "").inc()
        if call.reason:
            self._counters["rpc_errors"].labels(call.reason).inc()
        if call.reason and call.code in REFUSING and not call.num_answers:
            self._counters["rpc_refused"].labels(call.reason).inc()
        if call.code == "OK" and call.facts.timings is not None:
            self._finished(call, call.facts)

    def _finished(self, call: Call, facts: CallStats) -> None:
        self._counters["request_success"].labels(call.method, facts.finish_reason).inc()
        self._histograms["e2e_request_latency_seconds"].labels(call.method).observe(call.seconds)
        for phase, name in PHASES.items():
            self._histograms[name].labels(call.method).observe(getattr(facts.timings, phase))
        if facts.timings is not None and facts.num_attributed:
            self._histograms["attribution_seconds"].labels(call.method).observe(facts.timings.attribution)
        if call.method == "Evaluate":
            self._histograms["evaluation_seconds"].observe(call.seconds)
        if call.method == "Generate" and facts.num_tokens > 1 and facts.first_token_at and facts.last_token_at:
            seconds = facts.last_token_at - facts.first_token_at
            self._histograms["request_time_per_output_token_seconds"].observe(seconds / (facts.num_tokens - 1))


class EngineCollector(Collector):
    """What the engine is doing at the moment of a scrape, read without stopping it.

    Only lengths and numbers are read here, on the scrape's own thread, each at once: they may be a pass old, and they
    hold nobody up.
    """

    def __init__(self) -> None:
        self._watched: tuple[Engine, EngineThread] | None = None

    def watch(self, engine: Engine, thread: EngineThread) -> None:
        """Read these from now on."""
        self._watched = engine, thread

    def collect(self) -> Iterator[Metric]:
        """Every family; without values until there is an engine."""
        now = {} if self._watched is None else _now(*self._watched)
        for name, its in ENGINE_GAUGES.items():
            yield GaugeMetricFamily(f"{PREFIX}_{name}", its.text, value=now.get(name))
        for name, its in ENGINE_COUNTERS.items():
            yield CounterMetricFamily(f"{PREFIX}_{name}", its.text, value=now.get(name))
        memory = {} if self._watched is None else gpu_memory(self._watched[0].devices)
        for name, its in DEVICE_GAUGES.items():
            family = GaugeMetricFamily(f"{PREFIX}_{name}", its.text, labels=its.labels)
            for device, (free, total) in memory.items():
                family.add_metric([device], free if "free" in name else total)
            yield family
        for name, its in INFOS.items():
            family = GaugeMetricFamily(f"{PREFIX}_{name}", its.text, labels=its.labels)
            if self._watched is not None:
                family.add_metric(_values(name, its.labels, self._watched[0]), 1)
            yield family


def _values(name: str, labels: Sequence[str], engine: Engine) -> list[str]:
    """Of an info metric's labels."""
    if name == "model_info":
        return [str(getattr(engine.info, label)) for label in labels]
    versions = {"version": __version__, "python": platform.python_version(), **software_versions()}
    return [versions[label] for label in labels]


def _now(engine: Engine, thread: EngineThread) -> dict[str, float]:
    asked, found = engine.scheduler.prefix_cache_stats
    return {
        "num_requests_running": thread.num_running,
        "num_requests_waiting": thread.num_waiting,
        "max_running_requests": thread.max_running,
        "max_queued_requests": thread.max_queued,
        "kv_cache_usage_perc": engine.scheduler.num_reserved_tokens / engine.kv_tokens,
        "kv_cache_tokens": engine.kv_tokens,
        "engine_heartbeat_age_seconds": thread.heartbeat_age,
        "prefix_cache_queries": asked,
        "prefix_cache_hits": found,
    }
