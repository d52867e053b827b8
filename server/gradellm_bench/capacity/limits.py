"""What else a fleet needs than time of GPUs, and which of it runs out first.

Figures that were measured are in a file (deploy/capacity/wire.py writes it), figures of other people's systems are
assumptions, named here with what they are. Each limit is told with its arithmetic.
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
DNS_RECORD_BYTES = 16  # an A record whose name points back: 2 + 2 + 2 + 4 + 2 + 4
DNS_HEADER_BYTES = 12 + 60  # header and question, of a Service's name
DNS_UDP_BYTES, DNS_TCP_BYTES = 1232, 65535  # what resolvers send by UDP by common agreement; what TCP's length says
MOST_RECORDS = (DNS_TCP_BYTES - DNS_HEADER_BYTES) // DNS_RECORD_BYTES
EVENTS_SHARE = 0.7  # of a core that a client's or a server's interpreter may use: beyond it, queues grow
CONNECTION_BYTES = 100e3  # assumption: of an idle HTTP/2 connection in a server process
SERIES_OF_ONE_PROMETHEUS = 5e6  # assumption: what one server with tens of GB of memory holds comfortably
MODEL_STORE_BYTES = 10e9  # assumption: bytes a second that a shared store of models gives all readers together
ENDPOINTS_OF_A_SERVICE = 5000  # assumption: where kube-proxy-less headless Services are still commonly run


@dataclass(frozen=True)
class Wire:
    """What leaves a server costs.

    Attributes:
        token_seconds: of the server's interpreter for a token.
        vector_seconds: for a row of scores, and `score_seconds` for each of them.
        score_seconds: see there.
        client_seconds: of a client's interpreter for a token with its row of `client_sources` scores.
        token_bytes: of a token's event; `vector_bytes` of a row's beside its scores.
        vector_bytes: see there.
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
        """What deploy/capacity/wire.py wrote.

        Raises:
            ValueError: for a file that is not that.
        """
        try:
            told = json.loads(path.read_text())
            return cls(
                told["server_us_a_token"] / 1e6,
                told["server_us_a_vector"] / 1e6,
                told["server_us_a_thousand_scores"] / 1e9,
                told["client_us_a_token_and_vector"] / 1e6,
                told["bytes_of_a_token"],
                told["bytes_of_a_vector_beside_scores"],
                told["prometheus_series"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is not what `python deploy/capacity/wire.py --json FILE` writes: {error!r}"
            ) from None

    def interpreter(self, tokens: float, vectors: float, sources: float) -> float:
        """Share of a server's event loop that so many tokens and rows a second take."""
        return tokens * self.token_seconds + vectors * self.row_seconds(sources)

    def row_seconds(self, sources: float) -> float:
        """Of the event loop for a row of so many scores."""
        return self.vector_seconds + sources * self.score_seconds

    def bytes_a_second(self, tokens: float, vectors: float, sources: float) -> float:
        """On the network, HTTP/2's and TCP's own left out (some 5 %)."""
        return tokens * self.token_bytes + vectors * (self.vector_bytes + sources * SCORE_BYTES)


@dataclass(frozen=True)
class Limit:
    """One thing that a fleet uses.

    Attributes:
        what: it is.
        used: of `most`; above 1 it has run out.
        arithmetic: how that comes.
        remedy: what then helps.
    """

    what: str
    used: float
    arithmetic: str
    remedy: str


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
    """What a plan uses, most first; `clients` is how many client processes hold channels to all servers."""
    run, replicas, sources = plan.run, plan.replicas, traffic.prompt_tokens
    per_server = wire.interpreter(run.tokens_per_second, run.vectors_per_second, sources)
    sent = wire.bytes_a_second(run.tokens_per_second, run.vectors_per_second, sources)
    # A stream holds the places of its longest answer.
    held = run.running * (traffic.prompt_tokens + max(traffic.answer_tokens, traffic.max_new_tokens))
    answer = DNS_HEADER_BYTES + DNS_RECORD_BYTES * replicas
    tokens, vectors = replicas * run.tokens_per_second, replicas * run.vectors_per_second
    client_work = wire.client_seconds * (tokens + vectors) / 2
    found = [
        Limit(
            "time of the GPUs",
            plan.load / replicas / plan.each,
            f"{plan.load / replicas:.2f} requests a second each, of {plan.each:.2f}; beyond that: {plan.breaks}",
            "more servers",
        ),
        Limit(
            "memory for keys and values",
            held / settings.kv_tokens,
            f"{run.running:.0f} streams x {traffic.prompt_tokens + traffic.max_new_tokens:,} places of "
            f"{settings.kv_tokens:,} ({costs.kv_bytes_per_token / 1e3:.0f} KB each)",
            "smaller max_new_tokens, --kv-memory, a larger GPU",
        ),
        Limit(
            "a server's interpreter (gRPC's event loop)",
            per_server / EVENTS_SHARE,
            f"{run.tokens_per_second:,.0f} tokens x {1e6 * wire.token_seconds:.0f} us + "
            f"{run.vectors_per_second:,.0f} rows x {1e6 * wire.row_seconds(sources):.0f} us = "
            f"{per_server:.0%} of a core, of {EVENTS_SHARE:.0%}",
            "top_k_sources, resolution word or segment, several servers a GPU host",
        ),
        Limit(
            "a server's network",
            8 * sent / (nic_gbit * 1e9),
            f"{8 * sent / 1e6:,.1f} Mbit/s of {nic_gbit:g} Gbit/s",
            "top_k_sources, resolution word or segment",
        ),
        Limit(
            "clients' interpreters",
            client_work / EVENTS_SHARE / clients,
            f"{tokens:,.0f} tokens and {vectors:,.0f} rows a second = {client_work:,.1f} cores, of {clients:,} "
            f"processes at {EVENTS_SHARE:.0%}",
            f"at least {client_work / EVENTS_SHARE:,.0f} client or gateway processes",
        ),
        Limit(
            "one answer of DNS, by UDP",
            answer / DNS_UDP_BYTES,
            f"{DNS_HEADER_BYTES} + {DNS_RECORD_BYTES} x {replicas:,} = {answer:,} bytes of {DNS_UDP_BYTES:,}",
            "TCP, which resolvers take by themselves",
        ),
        Limit(
            "one answer of DNS, at all",
            answer / DNS_TCP_BYTES,
            f"{answer:,} bytes of {DNS_TCP_BYTES:,}, which are {MOST_RECORDS:,} servers",
            "several names (cells), a proxy or xDS before them",
        ),
        Limit(
            "endpoints of one Service",
            replicas / ENDPOINTS_OF_A_SERVICE,
            f"{replicas:,} of {ENDPOINTS_OF_A_SERVICE:,} (assumed), {-(-replicas // 100):,} EndpointSlices",
            "cells: clusters or Services of a thousand servers each",
        ),
        Limit(
            "connections of one server",
            clients * CONNECTION_BYTES / 4e9,
            f"{clients:,} clients x {CONNECTION_BYTES / 1e3:.0f} KB (assumed) of 4 GB; a client holds {replicas:,}, "
            f"all together {clients * replicas:,}",
            "gateways before the servers, or subsets of servers a client",
        ),
        Limit(
            "one Prometheus",
            replicas * wire.series / SERIES_OF_ONE_PROMETHEUS,
            f"{replicas:,} x {wire.series} = {replicas * wire.series:,} series of "
            f"{SERIES_OF_ONE_PROMETHEUS / 1e6:.0f} million (assumed)",
            "one a cell, with recording rules federated",
        ),
        Limit(
            "loading of all servers at once",
            replicas * costs.weight_bytes / MODEL_STORE_BYTES / 3600,
            f"{replicas:,} x {costs.weight_bytes / 1e9:.0f} GB at {MODEL_STORE_BYTES / 1e9:.0f} GB/s (assumed) = "
            f"{replicas * costs.weight_bytes / MODEL_STORE_BYTES / 60:,.0f} min, of an hour",
            "the model on each node's own disk",
        ),
    ]
    return sorted(found, key=lambda its: -its.used)
