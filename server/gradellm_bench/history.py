"""Benchmark history: `python -m gradellm_bench.history RESULTS.json` appends a run to docs/benchmark-history.jsonl.

RESULTS.json is what `gradellm bench --json` or `python -m gradellm_bench.network --json` writes. A line of the history
is a run: date, commit, machine, versions, and for each prompt length the cost of a token relative to a plain token of
the same run, or for each number of streams the throughput of servers, with that of vLLM where it was measured. Ratios
can be compared between machines and days; milliseconds and tokens a second are kept too, for the same machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gradellm_bench.latency import Latency
from gradellm_engine.utils.quiet import run_and_exit

HISTORY = Path("docs/benchmark-history.jsonl")
BASELINE = "plain"
EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Append a run to the history; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m gradellm_bench.history", description="Append a run of a benchmark to the history."
    )
    parser.add_argument("results", type=Path, metavar="RESULTS", help="a file that a benchmark wrote with --json")
    parser.add_argument("--history", type=Path, default=HISTORY, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--date", help="of the run, ISO 8601 (default: of the commit of RESULTS, else now)")
    parser.add_argument("--commit", help="that was measured (default: the last one that changed RESULTS, else HEAD)")
    options = parser.parse_args(arguments)
    date, commit = _last_change(options.results)
    try:
        results = json.loads(options.results.read_text())
        summarise = served_summary if "rows" in results else summary
        run = summarise(results, date=options.date or date, commit=options.commit or commit)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"error: {options.results} is not a file that a benchmark wrote with --json: {error!r}", file=sys.stderr)
        return EXIT_USAGE
    if append(options.history, run):
        print(f"{options.history}: added the run of {run['date']} ({run['device']}, {run['model']})")
    else:
        print(f"{options.history}: already has this run")
    return 0


def summary(results: Mapping[str, Any], *, date: str, commit: str) -> dict[str, Any]:
    """A run's line of the history.

    `token_cost` (relative to plain) and `ms_per_token` are by prompt length and backend; `throughput` (tokens a second
    of all streams, relative to plain) is by "STREAMS x PROMPT" and backend.
    """
    machine = results["machine"]
    token_cost: dict[str, dict[str, float]] = {}
    milliseconds: dict[str, dict[str, float]] = {}
    latencies = [Latency(**row) for row in results["latencies"]]
    plain = {latency.prompt_tokens: latency for latency in latencies if latency.backend == BASELINE}
    for latency in latencies:
        length = str(latency.prompt_tokens)
        milliseconds.setdefault(length, {})[latency.backend] = round(statistics.median(latency.per_token), 4)
        if (baseline := plain.get(latency.prompt_tokens)) is not None:
            token_cost.setdefault(length, {})[latency.backend] = round(latency.over(baseline), 4)
    return {
        "date": date,
        "commit": commit,
        "model": machine["model"],
        "dtype": machine["dtype"],
        "device": ", ".join(filter(None, (machine["device"], machine["threads"]))),
        "torch": machine["torch"].removeprefix("torch "),
        "transformers": machine["transformers"].removeprefix("transformers "),
        "bandwidth_gb_per_second": round(results["bandwidth"] / 1e9, 1),
        "token_cost": token_cost,
        "throughput": _relative_throughput(results["throughputs"]),
        "ms_per_token": milliseconds,
    }


def served_summary(results: Mapping[str, Any], *, date: str, commit: str) -> dict[str, Any]:
    """The line of a run of servers: tokens a second of all streams, by "STREAMS x PROMPT" and server."""
    machine = results["machine"]
    served: dict[str, dict[str, float]] = {}
    for row in results["rows"]:
        size = f"{row['streams']} x {row['prompt']}"
        served.setdefault(size, {})[row["server"]] = round(row["tokens_per_second"], 2)
    return {
        "date": date,
        "commit": commit,
        "model": machine["model"],
        "dtype": machine["dtype"],
        "device": f"{machine['processor']}, {machine['cores']} cores",
        "served": served,
    }


def _relative_throughput(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    by_size: dict[str, dict[str, float]] = {}
    for row in rows:
        size = f"{row['streams']} x {row['prompt_tokens']}"
        by_size.setdefault(size, {})[row["backend"]] = row["tokens_per_second"]
    return {
        size: {backend: round(speed / speeds[BASELINE], 4) for backend, speed in speeds.items()}
        for size, speeds in by_size.items()
        if BASELINE in speeds
    }


def append(history: Path, run: Mapping[str, Any]) -> bool:
    """Append a run unless the history has it; whether it was appended."""
    lines = history.read_text().splitlines() if history.exists() else []
    if any(json.loads(line) == run for line in lines):
        return False
    with history.open("a") as file:
        file.write(json.dumps(run) + "\n")
    return True


def _last_change(path: Path) -> tuple[str, str]:
    """Date and short hash of the commit that a results file belongs to; of HEAD and now where it is not committed."""
    folder = path.parent if path.parent.is_dir() else Path()

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout  # noqa: S603

    is_committed = git("status", "--porcelain", "--", path.name) == ""
    found = git("log", "-1", "--format=%cI %h", *(["--", path.name] if is_committed else [])).split()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    if len(found) != 2:  # no repository, or a file that git ignores
        return now, ""
    return (found[0] if is_committed else now), found[1]


if __name__ == "__main__":
    run_and_exit(main)
