"""The fewest servers that keep what was promised, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from gradellm_bench.capacity.costs import Costs
from gradellm_bench.capacity.replica_simulator import Replica, ReplicaSettings
from gradellm_bench.capacity.request_metrics import Summary
from gradellm_bench.capacity.traffic import Traffic

Load = Callable[[Summary], float]
WARM_UP = 0.25  # share of requests that come before anything is counted: an empty server is fast
REQUESTS = 400
CLOSE = 0.03  # how near the search comes to the highest rate, relative
HEADROOM = 0.9  # share of that rate that servers are planned for: near it, chance decides


@dataclass(frozen=True)
class ServiceLevel:
    """What must hold; seconds.

    Attributes:
        first_token: 95th percentile from a request's coming to its first token.
        gap: 95th percentile between a stream's tokens.
        refused: share of requests that find no place.
        interpreter: share of the server's event loop, where what an event costs is known: beyond it events queue there.
    """

    first_token: float = 2.0
    gap: float = 0.1
    refused: float = 0.001
    interpreter: float = 0.7

    def broken_by(self, run: Summary, interpreter: float = 0.0) -> str | None:
        """What a run does not keep; None where it keeps all. `interpreter` is what it takes of the event loop."""
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
        load: requests a second, all together.
        each: requests a second that one server takes and keeps what was promised.
        breaks: what it does not keep at a little more.
        replicas: servers, the spare ones among them.
        gpus: of all servers.
        run: what one of them is like under its share while none has failed.
        a_month: what they cost for 730 hours, in the currency of the price; None without a price.
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
    """One server under `traffic`, counted once it is warm and while requests come."""
    coming = traffic.requests(requests, seed)
    replica = Replica(costs, settings)
    served = replica.run(coming)
    start, end = coming[int(WARM_UP * requests)].arrival, coming[-1].arrival
    return Summary.of(served, start=start, end=end, busy_seconds=replica.busy_between(start, end))


def highest_rate(
    costs: Costs,
    settings: ReplicaSettings,
    traffic: Traffic,
    promise: ServiceLevel,
    *,
    load_of: Load = lambda run: 0.0,
    requests: int = REQUESTS,
    seed: int = 0,
) -> tuple[float, str]:
    """Requests a second that one server takes and keeps the promise, and what breaks at a little more.

    `load_of` says which share of its event loop a run takes; see `limits`.

    Raises:
        ValueError: where not even one request at a time keeps it.
    """

    def broken(rate: float) -> str | None:
        run = simulate(costs, settings, replace(traffic, rate=rate), requests=requests, seed=seed)
        return promise.broken_by(run, load_of(run))

    low, high = 0.0, 0.25
    why = broken(high)
    while why is None:
        low, high = high, 2 * high
        why = broken(high)
    if not low:
        low = 0.001
        if (why := broken(low)) is not None:
            raise ValueError(f"not even one request at a time keeps what was promised: {why}")
        why = broken(high)
    while high / low > 1 + CLOSE:
        middle = math.sqrt(low * high)
        found = broken(middle)
        if found is None:
            low = middle
        else:
            high, why = middle, found
    return low, why or ""


def plan(
    costs: Costs,
    settings: ReplicaSettings,
    traffic: Traffic,
    promise: ServiceLevel,
    *,
    spare: int = 1,
    gpus: int = 1,
    gpu_hour: float | None = None,
    known: tuple[float, str] | None = None,
    load_of: Load = lambda run: 0.0,
) -> Plan:
    """Servers for `traffic`.

    Requests of many clients, each of which takes servers in turn, reach one server at random moments (worse than one
    client's strict turns), so that one server is simulated and all are like it.

    Args:
        costs: of a server's passes.
        settings: of a server.
        traffic: of all servers together.
        promise: what must hold, also while the spare servers are away.
        spare: servers that may be away.
        gpus: of a server.
        gpu_hour: price of a GPU for an hour.
        known: what `highest_rate` found, where it has been asked already.
        load_of: see `highest_rate`.
    """
    each, breaks = known or highest_rate(costs, settings, traffic, promise, load_of=load_of)
    replicas = math.ceil(traffic.rate / (HEADROOM * each)) + spare
    run = simulate(costs, settings, replace(traffic, rate=traffic.rate / replicas))
    price = None if gpu_hour is None else 730 * gpu_hour * replicas * gpus
    return Plan(traffic.rate, each, breaks, replicas, replicas * gpus, run, price)
