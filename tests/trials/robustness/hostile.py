"""Requests built to stop a server: their CPU time until admission or rejection, and their effect on other streams."""

from __future__ import annotations

import gc
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from gradellm_engine import Engine, EngineError
from gradellm_server.rpc.requests_from_wire import parse
from gradellm_server.rpc.rpcs import STREAMING_RPCS, UNARY_RPCS
from support import hostile as requests
from trials.report import Finding, percentile
from trials.serving import SERVING, Served, load, result, served

MIN_SECONDS, SECONDS_PER_KB, MAX_SECONDS = 0.050, 0.001, 2.0  # allowance: MIN + SECONDS_PER_KB x size
MAX_GROWTH = 2.5  # CPU time of a request of twice the size, relative
REMEASURE_ABOVE = 0.8  # of a bound: such a request is measured again, and the minimum counts
NOISE_SECONDS = 0.005  # shorter times are not compared
GAP_SECONDS, GAP_FACTOR = 0.150, 3.0
RATE = 2.0  # hostile requests a second


def models() -> dict[str, list[str]]:
    """Server arguments by model: the demo model, and SmolLM2 where `GRADELLM_REAL_MODELS` has it."""
    real = Path(os.environ.get("GRADELLM_REAL_MODELS", "")) / "smollm2"
    smollm2 = {"SmolLM2": ["--model", str(real)]} if (real / "config.json").exists() else {}
    return {**smollm2, "demo": []}


@dataclass(frozen=True)
class Cost:
    """CPU time of one request until its admission or rejection."""

    seconds: float
    num_bytes: int
    outcome: str

    @property
    def allowance(self) -> float:
        """Seconds that a request of this size may take."""
        return MIN_SECONDS + SECONDS_PER_KB * self.num_bytes / 1000


def reading(scale: float) -> list[Finding]:
    """CPU time from a request's bytes to its admission or rejection."""
    count = max(100, round(5000 * scale))
    return [finding for name, arguments in models().items() for finding in _reading(name, arguments, count)]


def _reading(name: str, arguments: list[str], count: int) -> list[Finding]:
    engine = Engine.load(arguments[1] if arguments else None, threads=1)
    assert engine.model_cost  # measured once, at start-up, as in a server
    gc.collect()
    gc.freeze()
    material = requests.Material.of(engine)
    costs: list[tuple[float, Cost, str]] = []  # seconds over allowance, and what was measured
    ratios: list[tuple[float, str]] = []
    outcomes: Counter[str] = Counter()
    for number in range(count):
        size = int(2 ** random.Random(number).uniform(3, 19))
        cost = _cost(engine, requests.hostile(material, number, size))
        seconds = cost.seconds
        if seconds > REMEASURE_ABOVE * cost.allowance:
            seconds = min(seconds, _min_seconds(engine, material, number, size, 3))
        what = f"number {number} of size {size}, {cost.num_bytes / 1000:.0f} kB: {cost.outcome}"
        costs.append((seconds / cost.allowance, Cost(seconds, cost.num_bytes, cost.outcome), what))
        outcomes[cost.outcome.partition(":")[0]] += 1
        if number % 4 == 0 and seconds > NOISE_SECONDS:
            single, double = _doubled(engine, material, number, size)
            if single > NOISE_SECONDS:
                ratios.append((double / single, f"{what}: {single * 1000:.0f} and {double * 1000:.0f} ms"))
    worst = max(costs, key=lambda row: row[0])
    slowest = max(costs, key=lambda row: row[1].seconds)
    ratio = max(ratios, default=(0.0, "none compared"))
    common = ", ".join(f"{number:,} {kind}" for kind, number in outcomes.most_common(4))
    return [
        Finding(f"{name}: requests", f"{count:,}: {common}"),
        Finding(f"{name}: largest share of its allowance", f"{worst[0]:.2f} ({worst[2]})", "1", worst[0] <= 1),
        Finding(f"{name}: slowest", f"{slowest[1].seconds * 1000:.0f} ms ({slowest[2]})", "2 s",
                slowest[1].seconds <= MAX_SECONDS),
        Finding(f"{name}: twice the size, {len(ratios)} compared", f"{ratio[0]:.2f} ({ratio[1]})", f"{MAX_GROWTH}",
                ratio[0] <= MAX_GROWTH),
    ]  # fmt: skip


def _doubled(engine: Engine, material: requests.Material, number: int, size: int) -> tuple[float, float]:
    """CPU seconds of a request, and of the same request at twice the size."""
    single = _min_seconds(engine, material, number, size, 2)
    double = _min_seconds(engine, material, number, 2 * size, 2)
    if double > REMEASURE_ABOVE * MAX_GROWTH * single:
        single, double = (_min_seconds(engine, material, number, n * size, 8) for n in (1, 2))
    return single, double


def _min_seconds(engine: Engine, material: requests.Material, number: int, size: int, repeats: int) -> float:
    """Minimum CPU time of several runs: other processes' use of the caches only adds to it."""
    return min(_cost(engine, requests.hostile(material, number, size)).seconds for _ in range(repeats))


def _cost(engine: Engine, hostile_request: requests.Hostile) -> Cost:
    payload = hostile_request.request.SerializeToString()
    readers: dict[str, tuple[type[Message], Callable[..., Any]]] = {
        **{name: (kind, read) for name, (kind, read, _) in STREAMING_RPCS.items()},
        **UNARY_RPCS,
    }
    kind, read = readers[hostile_request.call]
    start = time.process_time()
    try:
        accepted = read(parse(kind, payload), engine)
        outcome = f"{hostile_request.kind}, accepted"
    except EngineError as error:
        accepted, outcome = None, f"refused: {error}"[:120]
    seconds = time.process_time() - start
    if accepted is not None and hostile_request.call in STREAMING_RPCS:
        accepted.close()
    return Cost(seconds, len(payload), outcome)


def _write_requests(path: Path, model: str | None, count: int) -> None:
    """Write hostile requests of every kind and size, a line each: RPC, hexadecimal bytes, description."""
    material, rng = requests.Material.of(Engine.load(model, threads=1)), random.Random(2)
    with path.open("w") as file:
        for number in range(count):
            hostile_request = requests.hostile(material, number, int(2 ** rng.uniform(6, 20)))
            payload = hostile_request.request.SerializeToString()
            what = f"{hostile_request.kind}, number {number}, {len(payload):,} bytes"
            file.write(json.dumps([hostile_request.call, payload.hex(), what]) + "\n")


@dataclass
class Interference:
    """Eight steady streams, alone and during hostile requests.

    Attributes:
        gaps: largest gap in milliseconds without and with hostile requests, a round each.
        all_hold: whether every round kept its limit and finished its streams.
        codes: statuses of the hostile requests.
        response_seconds: their times to the first response.
        slowest: the longest of these, and which request it was.
        health_seconds: durations of health checks meanwhile.
        health_statuses: their statuses.
    """

    gaps: list[str] = field(default_factory=list)
    all_hold: bool = True
    codes: Counter[str] = field(default_factory=Counter)
    response_seconds: list[float] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    health_seconds: list[float] = field(default_factory=list)
    health_statuses: set[str] = field(default_factory=set)

    def run_round(self, server: Served, file: Path, seconds: float) -> None:
        """Measure the streams' largest gap without, then with hostile requests."""
        without, with_hostile = (
            self._largest_gap(server, file, seconds, is_under_attack=flag) for flag in (False, True)
        )
        self.all_hold &= with_hostile <= max(GAP_SECONDS, GAP_FACTOR * without)
        self.gaps.append(f"{without * 1000:.0f} and {with_hostile * 1000:.0f}")

    def _largest_gap(self, server: Served, file: Path, seconds: float, *, is_under_attack: bool) -> float:
        with (
            load("closed", server.address, streams=8, seconds=seconds, tokens=100) as streams,
            load("probes", server.address, seconds=seconds, services=["ready", "live"]) as prober,
        ):
            if is_under_attack:
                options = {"requests": str(file), "seconds": seconds, "rate": RATE}
                with load("hostile", server.address, **options) as generator:
                    hostile_outcome = result(generator, seconds + 240)
                self.codes.update(hostile_outcome["codes"])
                self.response_seconds += hostile_outcome["seconds"]
                longest, what = hostile_outcome["slowest"]
                self.slowest = max(self.slowest, (longest, what))
            outcome = result(streams, seconds + 240)
            probes = result(prober, seconds + 60)
        if is_under_attack:
            self.health_seconds += probes["seconds"]
            self.health_statuses |= set(probes["statuses"])
        self.all_hold &= outcome["unfinished"] == 0
        return float(max(outcome["gaps"]))


def hostile(scale: float) -> list[Finding]:
    """The gaps of eight streams, alone and while hostile requests arrive twice a second; three rounds."""
    seconds = max(10.0, 60.0 * scale)
    findings: list[Finding] = []
    for name, arguments in models().items():
        run = Interference()
        with tempfile.TemporaryDirectory() as folder, served("--max-queued", "64", *arguments) as server:
            file = Path(folder) / "requests"
            _write_requests(file, arguments[1] if arguments else None, round(RATE * seconds))
            with load("closed", server.address, streams=8, seconds=10) as process:
                result(process, 180)  # warms up: passes are traced and buffers allocated
            for _ in range(3):
                run.run_round(server, file, seconds)
        findings += _interference_findings(name, run)
    return findings


def _interference_findings(name: str, run: Interference) -> list[Finding]:
    wrong = {code: n for code, n in run.codes.items() if code in ("INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED")}
    health = max(run.health_seconds)
    return [
        Finding(f"{name}: hostile requests", ", ".join(f"{n} {code}" for code, n in run.codes.most_common())),
        Finding(f"{name}: largest gap of 8 streams without and with them, ms", "; ".join(run.gaps),
                "150 ms, or 3 times that without", run.all_hold),
        Finding(f"{name}: health checks", f"{health * 1000:.0f} ms at most of {len(run.health_seconds)}", "1 s",
                health < 1 and run.health_statuses == {str(SERVING)}),
        Finding(f"{name}: slowest response",
                f"{run.slowest[0]:.2f} s ({run.slowest[1]}); 99th percentile "
                f"{percentile(run.response_seconds, 99):.2f} s", "2 s", run.slowest[0] <= 2),
        Finding(f"{name}: INTERNAL, UNKNOWN or no response", str(sum(wrong.values())), "none", not wrong),
    ]  # fmt: skip
