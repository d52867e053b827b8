"""Writes docs/capacity.md's tables, docs/capacity.json and the plot, from measurements in docs/."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gradellm_bench.capacity.bench_import import from_bench
from gradellm_bench.capacity.costs import Costs
from gradellm_bench.capacity.limits import Wire, limits
from gradellm_bench.capacity.measurements import Measurements
from gradellm_bench.capacity.planning import ServiceLevel, highest_rate, plan, simulate
from gradellm_bench.capacity.replica_simulator import Replica, ReplicaSettings
from gradellm_bench.capacity.report import limit_table, markdown, plan_table, plot, validation_table
from gradellm_bench.capacity.request_metrics import Summary
from gradellm_bench.capacity.traffic import Traffic
from gradellm_bench.capacity.validation_run import ValidationRun, simulated

BEGIN, END = "<!-- begin: {} -->", "<!-- end: {} -->"
PRICE = 3.0  # assumed price of a GPU for an hour
LOADS = (1.0, 50.0, 1_000.0, 10_000.0, 100_000.0)
CLIENTS = {1.0: 1, 50.0: 8, 1_000.0: 100, 10_000.0: 1_000, 100_000.0: 10_000}  # client processes, by load
TRAFFIC = Traffic(1.0)
# By machine: KV cache slots in half of the memory that the weights leave free.
SERVERS = {
    "H100": ReplicaSettings(max_running=64, kv_tokens=235_000),
    "H200": ReplicaSettings(max_running=32, kv_tokens=468_000),  # passes were measured up to 32 streams
}
# Variants for one H100: changes of TRAFFIC, and of the server.
QUESTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the assumptions above": ({}, {}),
    "none explained": ({"explained": 0.0}, {}),
    "all explained, in chunks": ({"explained": 1.0, "chunked": 1.0}, {}),
    "all explained, token by token": ({"explained": 1.0, "chunked": 0.0}, {}),
    "prompts of 4,000 tokens": ({"prompt_tokens": 4000}, {}),
    "1 % evaluations": ({"evaluations": 0.01}, {}),
    "--max-running 16, the default": ({}, {"max_running": 16}),
    "--max-gap-ms 100": ({}, {"max_gap": 0.1}),
    "no CUDA graph capture": ({}, {"captures_graphs": False}),
}


def write(folder: Path) -> None:
    """Write all of them into `folder`, which has the measurements."""
    machines = machines_of(folder)
    wire = Wire.read(folder / "capacity-wire.json")
    page = (folder / "capacity.md").read_text()
    found: dict[str, Any] = {"price": PRICE, "traffic": asdict(TRAFFIC), "plans": {}}
    for name, costs in machines.items():
        best = highest_rate(costs, SERVERS[name], TRAFFIC, ServiceLevel(), load_of=_load_of(wire, TRAFFIC))
        plans = [
            plan(costs, SERVERS[name], replace(TRAFFIC, rate=load), ServiceLevel(), gpu_hour=PRICE, known=best)
            for load in LOADS
        ]
        page = put(page, f"plans {name}", plan_table(plans))
        found["plans"][name] = [asdict(each) for each in plans]
        if name == "H100":
            for load, fleet in zip(LOADS, plans, strict=True):
                found_limits = limits(fleet, TRAFFIC, costs, SERVERS[name], wire, clients=CLIENTS[load], nic_gbit=25.0)
                page = put(page, f"limits {load:g}", limit_table(found_limits))
    page = put(page, "questions", _questions(machines["H100"], wire))
    page = put(page, "trials", validation_table(validation_runs(folder)))
    (folder / "capacity.md").write_text(page)
    (folder / "capacity.json").write_text(json.dumps(found, indent=1) + "\n")
    _plot(machines, folder / "capacity.png")


def machines_of(folder: Path) -> dict[str, Costs]:
    """Cost models by machine."""
    return {
        "H100": Costs.fit(Measurements.read(folder / "capacity-h100.json")),
        "H200": Costs.fit(from_bench(folder / "bench-gpu.json")),
    }


def validation_runs(folder: Path) -> list[dict[str, Any]]:
    """Real runs, and the present simulation's prediction for them."""
    recorded = json.loads((folder / "capacity-trial.json").read_text())
    runs = []
    for record in recorded:
        costs, run = Costs.fit(Measurements.read(folder / record["passes"])), ValidationRun.of(record)
        runs.append({**record, "simulated": asdict(simulated(Replica(costs, run.settings), run))})
    return runs


def put(page: str, name: str, text: str) -> str:
    """The page with `text` between the markers of a section.

    Raises:
        ValueError: if the page lacks the markers.
    """
    begin, end = BEGIN.format(name), END.format(name)
    if begin not in page or end not in page:
        raise ValueError(f"the page lacks the markers of {name!r}: {begin} and {end}")
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"


def _load_of(wire: Wire, traffic: Traffic) -> Any:  # noqa: ANN401  (planning's Load)
    def load(run: Summary) -> float:
        return wire.interpreter(run.tokens_per_second, run.vectors_per_second, traffic.prompt_tokens)

    return load


def _questions(costs: Costs, wire: Wire) -> str:
    """The highest rate of one server, by variant."""
    rows = []
    for what, (change, setting) in QUESTIONS.items():
        traffic, settings = replace(TRAFFIC, **change), replace(SERVERS["H100"], **setting)
        each, breaks = highest_rate(costs, settings, traffic, ServiceLevel(), load_of=_load_of(wire, traffic))
        run = simulate(costs, settings, replace(traffic, rate=each))
        rows.append([what, f"{each:.2f}", f"{run.tokens_per_second:,.0f}", f"{run.running:.0f}", breaks])
    return markdown(["one H100", "requests/s", "tokens/s", "concurrent streams", "violated above this rate"], rows)


def _plot(machines: dict[str, Costs], path: Path) -> None:
    curves: dict[str, list[tuple[float, float, float]]] = {}
    for name, costs in machines.items():
        for explained in (0.0, 0.3, 1.0):
            points = []
            for rate in (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0):
                run = simulate(costs, SERVERS[name], replace(TRAFFIC, rate=rate, explained=explained), requests=200)
                points.append((rate, run.first_token[1], 1e3 * run.gap[1]))
                if run.first_token[1] > 4 * ServiceLevel().first_token:
                    break
            curves[f"{name}, {explained:.0%} explained"] = points
    plot(curves, ServiceLevel().first_token, path)
