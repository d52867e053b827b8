"""The fewest servers that meet a service level, and their cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from gradellm_bench.capacity.costs import Costs
from gradellm_bench.capacity.replica_simulator import Replica, ReplicaSettings
from gradellm_bench.capacity.request_metrics import Summary
from gradellm_bench.capacity.traffic import Traffic

Load = Callable[[Summary], float]
WARM_UP = 0.25  # share of requests before counting starts: an empty server is faster
REQUESTS = 400
SEARCH_TOLERANCE = 0.03  # relative, of the highest rate
HEADROOM = 0.9  # share of the highest rate that servers are planned for: close to it queues vary widely


@dataclass(frozen=True)
class ServiceLevel:
    """Upper bounds that a server must keep; times in seconds.

    Attributes:
        first_token: time to first token, 95th percentile.
        gap: time between tokens, 95th percentile.
        refused: share of rejected requests.
        interpreter: share of the server's event loop, if the cost of events is known; above it events queue.
    """

    first_token: float = 2.0
    gap: float = 0.1
    refused: float = 0.001
    interpreter: float = 0.7

    def broken_by(self, run: Summary, interpreter: float = 0.0) -> str | None:
        """The bound that a run violates, as text; None if it keeps all. `interpreter`: its share of the event loop."""
        if run.refused > self.refused:
            return f"{run.refused:.1%} refused"
        if run.first_token[1] > self.first_token:
            return f"first token after {run.first_token[1]:.1f} s"
        if run.gap[1] > self.gap:
            return f"{1e3 * run.gap[1]:.0f} ms between tokens"
        if interpreter > self.interpreter:
            return f"interpreter {interpreter:.0%} busy with events"
        return None


@dataclass(frozen=True)
class Plan:
    """Servers for a load.

    Attributes:
        load: requests a second, of all servers.
        each: the highest rate of one server that meets the service level.
        breaks: the bound that a slightly higher rate violates.
        replicas: servers, spares included.
        gpus: GPUs of all servers.
        run: one server under its share of the load, with no server down.
        a_month: cost of 730 hours, in the currency of the price; None without a price.
    """

    load: float
    each: float
    breaks: str
    replicas: int
    gpus: int
    run: Summary
    a_month: float | None


def simulate(
    costs: Costs, settings: ReplicaSettings, traffic: Traffic, *, requests: int = REQUESTS, seed: int = 0
) -> Summary:
    """Simulate one server under `traffic`; counted after the warm-up and while requests arrive."""
    arrivals = traffic.requests(requests, seed)
    replica = Replica(costs, settings)
    served = replica.run(arrivals)
    start, end = arrivals[int(WARM_UP * requests)].arrival, arrivals[-1].arrival
    return Summary.of(served, start=start, end=end, busy_seconds=replica.busy_between(start, end))


def highest_rate(
    costs: Costs,
    settings: ReplicaSettings,
    traffic: Traffic,
    level: ServiceLevel,
    *,
    load_of: Load = lambda run: 0.0,
    requests: int = REQUESTS,
    seed: int = 0,
) -> tuple[float, str]:
    """The highest rate of one server that meets a service level, and the bound that a slightly higher rate violates.

    `load_of` gives a run's share of the event loop; see `limits`.

    Raises:
        ValueError: if the service level cannot be met even at a negligible rate.
    """

    def violation(rate: float) -> str | None:
        run = simulate(costs, settings, replace(traffic, rate=rate), requests=requests, seed=seed)
        return level.broken_by(run, load_of(run))

    low, high = 0.0, 0.25
    why = violation(high)
    while why is None:
        low, high = high, 2 * high
        why = violation(high)
    if not low:
        low = 0.001
        if (why := violation(low)) is not None:
            raise ValueError(f"not even one request at a time meets the service level: {why}")
        why = violation(high)
    while high / low > 1 + SEARCH_TOLERANCE:
        middle = math.sqrt(low * high)
        found = violation(middle)
        if found is None:
            low = middle
        else:
            high, why = middle, found
    return low, why or ""


def plan(
    costs: Costs,
    settings: ReplicaSettings,
    traffic: Traffic,
    level: ServiceLevel,
    *,
    spare: int = 1,
    gpus: int = 1,
    gpu_hour: float | None = None,
    known: tuple[float, str] | None = None,
    load_of: Load = lambda run: 0.0,
) -> Plan:
    """Servers for `traffic`.

    With many clients that each balance round-robin, requests reach a server at random times, so that one server is
    simulated and stands for all.

    Args:
        costs: cost model of a server's passes.
        settings: a server's limits.
        traffic: requests to all servers.
        level: service level, to be met while the spare servers are down.
        spare: servers that may be down.
        gpus: GPUs of a server.
        gpu_hour: price of a GPU for an hour.
        known: the result of `highest_rate`, if it is known already.
        load_of: see `highest_rate`.
    """
    each, breaks = known or highest_rate(costs, settings, traffic, level, load_of=load_of)
    replicas = math.ceil(traffic.rate / (HEADROOM * each)) + spare
    run = simulate(costs, settings, replace(traffic, rate=traffic.rate / replicas))
    price = None if gpu_hour is None else 730 * gpu_hour * replicas * gpus
    return Plan(traffic.rate, each, breaks, replicas, replicas * gpus, run, price)
