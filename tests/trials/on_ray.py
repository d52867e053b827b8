"""A data set over actors of Ray, as processes of their own, against one process without Ray; by results files."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from trials.report import Finding

RUN_SECONDS = 900.0
ASKED = (
    "--preset", "sst2", "--name", "demo-sentiment", "--methods", "grad_ellm,knockout,attention,saliency,random",
    "--metrics", "pi_soft_ns,pi_soft_nc,deletion", "--pis", "0.25,0.5,0.75", "--samples", "1", "--threads", "1",
)  # fmt: skip


def ray(scale: float) -> list[Finding]:
    """The same prompts by one process, by two actors, and by two actors of which one is killed."""
    count = max(20, round(200 * scale))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "sentiment.jsonl"
        held_out = [
            sys.executable,
            "-m",
            "gradellm_engine.demo_model.training.held_out",
            "sentiment",
            "--count",
            str(count),
        ]
        data.write_bytes(subprocess.run(held_out, check=True, capture_output=True).stdout)
        seconds = {
            "one": evaluated(data, folder / "one", actors=0),
            "two": evaluated(data, folder / "two", actors=2),
            "killed": evaluated(data, folder / "killed", actors=2, kill_at=count // 3),
        }
        whole = lines(folder / "one")
        of = {name: lines(folder / name) for name in ("two", "killed")}
        tables = {name: json.loads((folder / name / "table1.json").read_text()) for name in seconds}
        numbers = sum(
            len(by) * (1 + ("curve" in next(iter(by.values()))) * 3)
            for line in whole[1:]
            for by in json.loads(line)["result"]["metrics"].values()
        )
        others = [name for name in of if tables[name] | {"command": ""} != tables["one"] | {"command": ""}]
    return [
        Finding("prompts", f"{count}, {numbers:,} numbers of 5 methods and 3 metrics; 1 thread an engine"),
        Finding("seconds, with all starts", f"one process {seconds['one']:.0f}, two actors {seconds['two']:.0f}, "
                f"two actors and one killed {seconds['killed']:.0f}"),
        same("lines of two actors' results file that one process has not", of["two"], whole),
        same("the same, an actor killed by SIGKILL after a third", of["killed"], whole),
        Finding("prompts that came twice, or not at all", str(sum(odd(of[name], count) for name in of)), "none",
                not any(odd(of[name], count) for name in of)),
        Finding("tables that differ", str(len(others)), "none", not others),
    ]  # fmt: skip


def same(what: str, found: list[str], wanted: list[str]) -> Finding:
    """Lines that are not there, byte for byte."""
    differing = len(set(found) ^ set(wanted))
    return Finding(what, f"{differing} of {len(wanted):,}", "none, to the last bit", not differing)


def odd(found: list[str], count: int) -> int:
    """Prompts that a results file does not hold once."""
    ids = [json.loads(line)["id"] for line in found[1:]]
    return (len(ids) - len(set(ids))) + (count - len(set(ids)))


def lines(out: Path) -> list[str]:
    """A results file's lines: its header, and then one a prompt, by id."""
    header, *rest = (out / "results.jsonl").read_text().splitlines()
    return [header, *sorted(rest)]


def evaluated(data: Path, out: Path, *, actors: int, kill_at: int | None = None) -> float:
    """Run to the end, with an engine killed once so many prompts are done; the seconds."""
    command = [sys.executable, "-m", "gradellm_ray", *ASKED, "--data", str(data), "--out", str(out)]
    began = time.monotonic()
    process = subprocess.Popen(
        [*command, "--actors", str(actors)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while process.poll() is None and time.monotonic() - began < RUN_SECONDS:
            results = out / "results.jsonl"
            if kill_at is not None and results.exists() and results.read_bytes().count(b"\n") > kill_at:
                engines(process.pid)[0].send_signal(signal.SIGKILL)
                kill_at = None
            time.sleep(0.02)
        if process.poll() != 0 or kill_at is not None:
            raise RuntimeError(f"{' '.join(command)} ended with {process.poll()}, or before an actor was killed")
    finally:
        process.kill()
        process.wait()
    return time.monotonic() - began


def engines(pid: int) -> list[psutil.Process]:
    """The actors' processes under another."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if "EngineActor" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:  # it has ended
            continue
    return found
