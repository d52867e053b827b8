"""Resources that a fleet of servers uses besides GPU time, and which of them is exhausted first.

Measured figures come from a file that deploy/capacity/wire.py writes; figures of other systems are assumptions and are
named here as such. Each limit is reported with its arithmetic.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from gradellm_bench.capacity.costs import Costs
from gradellm_bench.capacity.planning import Plan
from gradellm_bench.capacity.replica_simulator import ReplicaSettings
from gradellm_bench.capacity.traffic import Traffic

SCORE_BYTES = 4  # packed float32
DNS_RECORD_BYTES = 16  # an A record with a compressed name: 2 + 2 + 2 + 4 + 2 + 4
DNS_HEADER_BYTES = 12 + 60  # header and question, of a Service's name
DNS_UDP_BYTES, DNS_TCP_BYTES = 1232, 65535  # the EDNS size that resolvers agreed on; the limit of TCP's length field
MAX_DNS_RECORDS = (DNS_TCP_BYTES - DNS_HEADER_BYTES) // DNS_RECORD_BYTES
EVENTS_SHARE = 0.7  # of a core, for a client's or server's event loop; above it queues grow
CONNECTION_BYTES = 100e3  # assumption: memory of an idle HTTP/2 connection in a server process
SERIES_OF_ONE_PROMETHEUS = 5e6  # assumption: series that one Prometheus with tens of GB of memory holds
MODEL_STORE_BYTES = 10e9  # assumption: bytes a second that a shared model store gives all readers together
ENDPOINTS_OF_A_SERVICE = 5000  # assumption: size up to which headless Services are commonly run


@dataclass(frozen=True)
class Wire:
    """Costs of events on the wire, in CPU seconds and bytes.

    Attributes:
        token_seconds: server CPU seconds per token.
        vector_seconds: server CPU seconds per attribution row, without its scores.
        score_seconds: server CPU seconds per score.
        client_seconds: client CPU seconds per token with its attribution row.
        token_bytes: bytes of a token event.
        vector_bytes: bytes of an attribution event, without its scores.
        series: Prometheus series of one server.
    """

    token_seconds: float
    vector_seconds: float
    score_seconds: float
    client_seconds: float
    token_bytes: int
    vector_bytes: int
    series: int

    @classmethod
    def read(cls, path: Path) -> Wire:
        """Read a file that deploy/capacity/wire.py wrote.

        Raises:
            ValueError: if the file has another format.
        """
        try:
            figures = json.loads(path.read_text())
            return cls(
                figures["server_us_a_token"] / 1e6,
                figures["server_us_a_vector"] / 1e6,
                figures["server_us_a_thousand_scores"] / 1e9,
                figures["client_us_a_token_and_vector"] / 1e6,
                figures["bytes_of_a_token"],
                figures["bytes_of_a_vector_beside_scores"],
                figures["prometheus_series"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is not what `python deploy/capacity/wire.py --json FILE` writes: {error!r}"
            ) from None

    def interpreter(self, tokens: float, vectors: float, sources: float) -> float:
        """Share of a server's event loop that `tokens` and `vectors` (rows) a second take."""
        return tokens * self.token_seconds + vectors * self.row_seconds(sources)

    def row_seconds(self, sources: float) -> float:
        """CPU seconds of the event loop for a row of `sources` scores."""
        return self.vector_seconds + sources * self.score_seconds

    def bytes_a_second(self, tokens: float, vectors: float, sources: float) -> float:
        """Bytes a second on the network, without the overhead of HTTP/2 and TCP (some 5 %)."""
        return tokens * self.token_bytes + vectors * (self.vector_bytes + sources * SCORE_BYTES)


@dataclass(frozen=True)
class Limit:
    """How much of a limited resource a plan uses.

    Attributes:
        what: the resource.
        used: share of its capacity; above 1 it is exhausted.
        arithmetic: the calculation, as text.
        remedy: what helps.
    """

    what: str
    used: float
    arithmetic: str
    remedy: str


@dataclass(frozen=True)
class Fleet:
    """What limits are computed from.

    Attributes:
        plan: servers and load.
        traffic: lengths of requests.
        costs: of a server's passes.
        settings: limits of a server.
        wire: costs of events on the wire.
        clients: client processes, each with a channel to every server.
        nic_gbit: network speed of a server, in Gbit/s.
    """

    plan: Plan
    traffic: Traffic
    costs: Costs
    settings: ReplicaSettings
    wire: Wire
    clients: int
    nic_gbit: float = 25.0

    @property
    def tokens_per_second(self) -> float:
        """Of all servers together."""
        return self.plan.replicas * self.plan.run.tokens_per_second

    @property
    def vectors_per_second(self) -> float:
        """Of all servers together."""
        return self.plan.replicas * self.plan.run.vectors_per_second


def limits(
    plan: Plan,
    traffic: Traffic,
    costs: Costs,
    settings: ReplicaSettings,
    wire: Wire,
    *,
    clients: int,
    nic_gbit: float = 25.0,
) -> list[Limit]:
    """How much a plan uses of each resource, the most used first; arguments as in `Fleet`."""
    fleet = Fleet(plan, traffic, costs, settings, wire, clients, nic_gbit)
    found = [
        *_gpu_limits(fleet),
        *_interpreter_and_network_limits(fleet),
        *_dns_limits(fleet),
        *_cluster_limits(fleet),
    ]
    return sorted(found, key=lambda limit: -limit.used)


def _gpu_limits(fleet: Fleet) -> list[Limit]:
    plan, traffic, kv_tokens = fleet.plan, fleet.traffic, fleet.settings.kv_tokens
    # A request reserves KV cache slots for its longest possible answer.
    slots = plan.run.running * (traffic.prompt_tokens + max(traffic.answer_tokens, traffic.max_new_tokens))
    return [
        Limit(
            "GPU time",
            plan.load / plan.replicas / plan.each,
            f"{plan.load / plan.replicas:.2f} requests a second each, of {plan.each:.2f}; above that: {plan.breaks}",
            "more servers",
        ),
        Limit(
            "KV cache slots",
            slots / kv_tokens,
            f"{plan.run.running:.0f} streams x {traffic.prompt_tokens + traffic.max_new_tokens:,} slots of "
            f"{kv_tokens:,} ({fleet.costs.kv_bytes_per_token / 1e3:.0f} KB each)",
            "smaller max_new_tokens, --kv-memory, a larger GPU",
        ),
    ]


def _interpreter_and_network_limits(fleet: Fleet) -> list[Limit]:
    run, wire, sources = fleet.plan.run, fleet.wire, fleet.traffic.prompt_tokens
    server_share = wire.interpreter(run.tokens_per_second, run.vectors_per_second, sources)
    sent = wire.bytes_a_second(run.tokens_per_second, run.vectors_per_second, sources)
    tokens, vectors = fleet.tokens_per_second, fleet.vectors_per_second
    client_cores = wire.client_seconds * (tokens + vectors) / 2
    return [
        Limit(
            "a server's event loop (gRPC)",
            server_share / EVENTS_SHARE,
            f"{run.tokens_per_second:,.0f} tokens x {1e6 * wire.token_seconds:.0f} us + "
            f"{run.vectors_per_second:,.0f} rows x {1e6 * wire.row_seconds(sources):.0f} us = "
            f"{server_share:.0%} of a core, of {EVENTS_SHARE:.0%}",
            "top_k_sources, resolution word or segment, several servers a GPU host",
        ),
        Limit(
            "a server's network",
            8 * sent / (fleet.nic_gbit * 1e9),
            f"{8 * sent / 1e6:,.1f} Mbit/s of {fleet.nic_gbit:g} Gbit/s",
            "top_k_sources, resolution word or segment",
        ),
        Limit(
            "clients' event loops",
            client_cores / EVENTS_SHARE / fleet.clients,
            f"{tokens:,.0f} tokens and {vectors:,.0f} rows a second = {client_cores:,.1f} cores, of "
            f"{fleet.clients:,} processes at {EVENTS_SHARE:.0%}",
            f"at least {client_cores / EVENTS_SHARE:,.0f} client or gateway processes",
        ),
    ]


def _dns_limits(fleet: Fleet) -> list[Limit]:
    replicas = fleet.plan.replicas
    response = DNS_HEADER_BYTES + DNS_RECORD_BYTES * replicas
    return [
        Limit(
            "a DNS response over UDP",
            response / DNS_UDP_BYTES,
            f"{DNS_HEADER_BYTES} + {DNS_RECORD_BYTES} x {replicas:,} = {response:,} bytes of {DNS_UDP_BYTES:,}",
            "TCP, to which resolvers fall back by themselves",
        ),
        Limit(
            "a DNS response over TCP",
            response / DNS_TCP_BYTES,
            f"{response:,} bytes of {DNS_TCP_BYTES:,}, at most {MAX_DNS_RECORDS:,} servers",
            "several names (cells), a proxy or xDS before them",
        ),
    ]


def _cluster_limits(fleet: Fleet) -> list[Limit]:
    replicas, clients, series = fleet.plan.replicas, fleet.clients, fleet.plan.replicas * fleet.wire.series
    loaded_bytes = replicas * fleet.costs.weight_bytes
    return [
        Limit(
            "endpoints of a Service",
            replicas / ENDPOINTS_OF_A_SERVICE,
            f"{replicas:,} of {ENDPOINTS_OF_A_SERVICE:,} (assumed), {-(-replicas // 100):,} EndpointSlices",
            "cells: clusters or Services of a thousand servers each",
        ),
        Limit(
            "connections of a server",
            clients * CONNECTION_BYTES / 4e9,
            f"{clients:,} clients x {CONNECTION_BYTES / 1e3:.0f} KB (assumed) of 4 GB; a client holds {replicas:,}, "
            f"all clients {clients * replicas:,}",
            "gateways before the servers, or subsets of servers a client",
        ),
        Limit(
            "time series of a Prometheus",
            series / SERIES_OF_ONE_PROMETHEUS,
            f"{replicas:,} x {fleet.wire.series} = {series:,} series of "
            f"{SERIES_OF_ONE_PROMETHEUS / 1e6:.0f} million (assumed)",
            "a Prometheus for each cell, with federated recording rules",
        ),
        Limit(
            "model loading, all servers at once",
            loaded_bytes / MODEL_STORE_BYTES / 3600,
            f"{replicas:,} x {fleet.costs.weight_bytes / 1e9:.0f} GB at {MODEL_STORE_BYTES / 1e9:.0f} GB/s (assumed) = "
            f"{loaded_bytes / MODEL_STORE_BYTES / 60:,.0f} min, of an hour",
            "the model on each node's own disk",
        ),
    ]
