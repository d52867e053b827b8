"""A data set over Ray actors, compared by results files with one process without Ray."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from trials.report import Finding

RUN_SECONDS = 900.0
EVALUATION = (
    "--preset", "sst2", "--name", "demo-sentiment", "--methods", "grad_ellm,knockout,attention,saliency,random",
    "--metrics", "pi_soft_ns,pi_soft_nc,deletion", "--pis", "0.25,0.5,0.75", "--samples", "1", "--threads", "1",
)  # fmt: skip


def ray(scale: float) -> list[Finding]:
    """The same examples by one process, by two actors, and by two actors of which one is killed."""
    count = max(20, round(200 * scale))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "sentiment.jsonl"
        held_out = [sys.executable, "-m", "gradellm_engine.demo_model.training.held_out", "sentiment"]
        data.write_bytes(subprocess.run([*held_out, "--count", str(count)], check=True, capture_output=True).stdout)
        seconds = {
            "one": evaluate(data, folder / "one", actors=0),
            "two": evaluate(data, folder / "two", actors=2),
            "killed": evaluate(data, folder / "killed", actors=2, kill_at=count // 3),
        }
        reference = result_lines(folder / "one")
        lines = {name: result_lines(folder / name) for name in ("two", "killed")}
        tables = {name: json.loads((folder / name / "table1.json").read_text()) for name in seconds}
    numbers = sum(map(_count_numbers, map(json.loads, reference[1:])))
    differing = [name for name in lines if tables[name] | {"command": ""} != tables["one"] | {"command": ""}]
    missed = sum(missing_or_repeated(each, count) for each in lines.values())
    return [
        Finding("prompts", f"{count}, {numbers:,} numbers of 5 methods and 3 metrics; 1 thread an engine"),
        Finding("seconds, start-up included", f"one process {seconds['one']:.0f}, two actors {seconds['two']:.0f}, "
                f"two actors and one killed {seconds['killed']:.0f}"),
        equal_lines("lines of two actors' results file that differ from one process's", lines["two"], reference),
        equal_lines("the same, an actor killed by SIGKILL after a third", lines["killed"], reference),
        Finding("prompts evaluated twice, or not at all", str(missed), "none", not missed),
        Finding("tables that differ", str(len(differing)), "none", not differing),
    ]  # fmt: skip


def _count_numbers(line: dict[str, Any]) -> int:
    """Numbers of a result line: one a method and metric, and three more for a curve."""
    metrics = line["result"]["metrics"].values()
    return sum(len(by_method) * (1 + ("curve" in next(iter(by_method.values()))) * 3) for by_method in metrics)


def equal_lines(what: str, lines: list[str], reference: list[str]) -> Finding:
    """A finding that holds where both have the same lines, byte for byte."""
    differing = len(set(lines) ^ set(reference))
    return Finding(what, f"{differing} of {len(reference):,}", "none, to the last bit", not differing)


def missing_or_repeated(lines: list[str], count: int) -> int:
    """How many examples a results file lacks or holds twice."""
    ids = [json.loads(line)["id"] for line in lines[1:]]
    return (len(ids) - len(set(ids))) + (count - len(set(ids)))


def result_lines(out: Path) -> list[str]:
    """A results file's header, and its result lines sorted by id."""
    header, *rest = (out / "results.jsonl").read_text().splitlines()
    return [header, *sorted(rest)]


def evaluate(data: Path, out: Path, *, actors: int, kill_at: int | None = None) -> float:
    """Run an evaluation, killing one engine once `kill_at` examples are done; the seconds it took."""
    command = [sys.executable, "-m", "gradellm_ray", *EVALUATION, "--data", str(data), "--out", str(out)]
    start = time.monotonic()
    process = subprocess.Popen(
        [*command, "--actors", str(actors)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while process.poll() is None and time.monotonic() - start < RUN_SECONDS:
            results = out / "results.jsonl"
            if kill_at is not None and results.exists() and results.read_bytes().count(b"\n") > kill_at:
                engine_processes(process.pid)[0].send_signal(signal.SIGKILL)
                kill_at = None
            time.sleep(0.02)
        if process.poll() != 0 or kill_at is not None:
            raise RuntimeError(f"{' '.join(command)} ended with {process.poll()}, or before an actor was killed")
    finally:
        process.kill()
        process.wait()
    return time.monotonic() - start


def engine_processes(pid: int) -> list[psutil.Process]:
    """The EngineActor processes among a process's descendants."""
    engines = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if "EngineActor" in " ".join(child.cmdline()):
                engines.append(child)
        except psutil.Error:  # it has ended
            continue
    return engines
