"""Requests that are meant to stop a server: what they cost it before it takes or refuses them, and what its streams
notice of them."""

from __future__ import annotations

import gc
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from gradellm_engine import Engine, EngineError
from gradellm_server.rpc.requests_from_wire import parse
from gradellm_server.rpc.rpcs import STREAMING_RPCS, UNARY_RPCS
from support import hostile as requests
from trials.report import Finding, percentile
from trials.serving import SERVING, load, result, served

LEAST_SECONDS, SECONDS_A_KB, MOST_SECONDS = 0.050, 0.001, 2.0
DOUBLED = 2.5  # what a request of twice the size may cost, at most
NEAR = 0.8  # of a bound: a request that comes so near is measured again, and the least counts
NOISE_SECONDS = 0.005  # costs below are not compared
GAP_SECONDS, GAP_FACTOR = 0.150, 3.0
RATE = 2.0  # hostile requests a second


def models() -> dict[str, list[str]]:
    """The models that are tried, with the server's arguments: a real one where one is at hand."""
    real = Path(os.environ.get("GRADELLM_REAL_MODELS", "")) / "smollm2"
    found: dict[str, list[str]] = {"demo": []} | (
        {"SmolLM2": ["--model", str(real)]} if (real / "config.json").exists() else {}
    )
    return dict(reversed(found.items()))


def reading(scale: float) -> list[Finding]:
    """Processor time from a request's bytes to its admission or refusal."""
    count = max(100, round(5000 * scale))
    findings: list[Finding] = []
    for name, arguments in models().items():
        engine = Engine.load(arguments[1] if arguments else None, threads=1)
        assert engine.model_cost  # found once, as a server does when it starts
        gc.collect()
        gc.freeze()
        material = requests.Material.of(engine)
        costs: list[tuple[float, int, str]] = []
        ratios: list[tuple[float, str]] = []
        codes: Counter[str] = Counter()
        for number in range(count):
            size = int(2 ** random.Random(number).uniform(3, 19))
            once, num_bytes, said = _cost(engine, requests.hostile(material, number, size))
            if once > NEAR * (LEAST_SECONDS + SECONDS_A_KB * num_bytes / 1000):
                once = min(once, _least(engine, material, number, size, 3))
            what = f"number {number} of size {size}, {num_bytes / 1000:.0f} kB: {said}"
            costs.append((once / (LEAST_SECONDS + SECONDS_A_KB * num_bytes / 1000), num_bytes, what))
            codes[said.partition(":")[0]] += 1
            if number % 4 == 0 and once > NOISE_SECONDS:
                least = _least(engine, material, number, size, 2)
                twice = _least(engine, material, number, 2 * size, 2)
                if twice > NEAR * DOUBLED * least:
                    least, twice = (_least(engine, material, number, n * size, 8) for n in (1, 2))
                if least > NOISE_SECONDS:
                    ratios.append((twice / least, f"{what}: {least * 1000:.0f} and {twice * 1000:.0f} ms"))
        worst, slowest, ratio = max(costs), max(costs, key=_seconds), max(ratios, default=(0.0, "none compared"))
        told = ", ".join(f"{number:,} {kind}" for kind, number in codes.most_common(4))
        findings += [
            Finding(f"{name}: requests", f"{count:,}: {told}"),
            Finding(f"{name}: most of what it may cost", f"{worst[0]:.2f} ({worst[2]})", "1", worst[0] <= 1),
            Finding(f"{name}: slowest", f"{_seconds(slowest) * 1000:.0f} ms ({slowest[2]})", "2 s",
                    _seconds(slowest) <= MOST_SECONDS),
            Finding(f"{name}: twice the size, {len(ratios)} compared", f"{ratio[0]:.2f} ({ratio[1]})", f"{DOUBLED}",
                    ratio[0] <= DOUBLED),
        ]  # fmt: skip
    return findings


def _least(engine: Engine, material: requests.Material, number: int, size: int, times: int) -> float:
    """The least processor time of several runs: what others do to the machine's caches only adds to it."""
    return min(_cost(engine, requests.hostile(material, number, size))[0] for _ in range(times))


def _seconds(cost: tuple[float, int, str]) -> float:
    return cost[0] * (LEAST_SECONDS + SECONDS_A_KB * cost[1] / 1000)


def _cost(engine: Engine, its: requests.Hostile) -> tuple[float, int, str]:
    """Processor time of one request, its size, and what became of it."""
    payload = its.request.SerializeToString()
    work: dict[str, tuple[type[Message], Callable[..., Any]]] = {
        **{name: (kind, read) for name, (kind, read, _) in STREAMING_RPCS.items()},
        **UNARY_RPCS,
    }
    kind, read = work[its.call]
    began = time.process_time()
    try:
        stream = read(parse(kind, payload), engine)
        said = "taken"
    except EngineError as error:
        stream, said = None, f"refused: {error}"[:120]
    seconds = time.process_time() - began
    if stream is not None and its.call in STREAMING_RPCS:
        stream.close()
    return seconds, len(payload), f"{its.kind}, {said}" if stream is not None else said


def _write(path: Path, model: str | None, count: int) -> None:
    """Hostile requests of every kind, large and small, a line each: the call, the bytes, what it is."""
    material, draw = requests.Material.of(Engine.load(model, threads=1)), random.Random(2)
    with path.open("w") as file:
        for number in range(count):
            its = requests.hostile(material, number, int(2 ** draw.uniform(6, 20)))
            payload = its.request.SerializeToString()
            what = f"{its.kind}, number {number}, {len(payload):,} bytes"
            file.write(json.dumps([its.call, payload.hex(), what]) + "\n")


def hostile(scale: float) -> list[Finding]:
    """The gaps of eight streams, alone and while requests of every kind arrive twice a second; three times in turn."""
    seconds = max(10.0, 60.0 * scale)
    findings: list[Finding] = []
    for name, arguments in models().items():
        holds, told, refusals, probed = True, [], [], []
        codes: Counter[str] = Counter()
        slowest: tuple[float, str] = (0.0, "")
        statuses: set[str] = set()
        with tempfile.TemporaryDirectory() as folder, served("--max-queued", "64", *arguments) as server:
            file = Path(folder) / "requests"
            _write(file, arguments[1] if arguments else None, round(RATE * seconds))
            with load("closed", server.address, streams=8, seconds=10) as process:
                result(process, 180)  # what is compiled or made once is there
            for _ in range(3):
                gaps = []
                for is_beside in (False, True):
                    with (
                        load("closed", server.address, streams=8, seconds=seconds, tokens=100) as steady,
                        load("probes", server.address, seconds=seconds, services=["ready", "live"]) as prober,
                    ):
                        if is_beside:
                            how = {"requests": str(file), "seconds": seconds, "rate": RATE}
                            with load("hostile", server.address, **how) as generator:
                                found = result(generator, seconds + 240)
                            codes.update(found["codes"])
                            refusals += found["seconds"]
                            slowest = max(slowest, (found["slowest"][0], found["slowest"][1]))
                        outcome = result(steady, seconds + 240)
                        probes = result(prober, seconds + 60)
                    gaps.append(max(outcome["gaps"]))
                    if is_beside:
                        probed += probes["seconds"]
                        statuses |= set(probes["statuses"])
                    holds &= outcome["unfinished"] == 0
                limit = max(GAP_SECONDS, GAP_FACTOR * gaps[0])
                holds &= gaps[1] <= limit
                told.append(f"{gaps[0] * 1000:.0f} and {gaps[1] * 1000:.0f}")
        wrong = {code: number for code, number in codes.items() if code in ("INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED")}
        findings += [
            Finding(f"{name}: hostile requests", ", ".join(f"{number} {code}" for code, number in codes.most_common())),
            Finding(f"{name}: largest gap of 8 streams without and with them, ms", "; ".join(told),
                    "150 ms, or 3 times that without", holds),
            Finding(f"{name}: health", f"{max(probed) * 1000:.0f} ms at most of {len(probed)}", "1 s",
                    max(probed) < 1 and statuses == {str(SERVING)}),
            Finding(f"{name}: slowest answer",
                    f"{slowest[0]:.2f} s ({slowest[1]}); 99th percentile {percentile(refusals, 99):.2f} s", "2 s",
                    slowest[0] <= 2),
            Finding(f"{name}: INTERNAL, UNKNOWN or no answer", str(sum(wrong.values())), "none", not wrong),
        ]  # fmt: skip
    return findings
