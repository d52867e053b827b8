"""`python -m gradellm_bench.network --model PATH [--vllm DIR]`: servers under load over the network.

Each server is a process of its own and stays up for the whole run, so that all are measured within minutes of each
other, alternately. A run sends some distinct prompts at once and reads all completions; other runs send them as a
Poisson process, at some percentages of each server's capacity. The result is tables, JSON and a plot.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from gradellm_bench.capacity.document import put
from gradellm_bench.network.load import LoadSummary, RunSummary, new_texts, poisson_arrivals, run_streams
from gradellm_bench.network.report import Row, burst_table, load_table, plot_loads
from gradellm_bench.network.servers import GradellmServer, ServerError, StreamFn, VLLMServer

MODES = ("plain", "per_token", "chunked(16)")
WARM_UP_TOKENS = 4
PAUSE_SECONDS = 2.0  # before a run: threads of the server that ran before spin for a second before they sleep
EXIT_FAILED = 70

TokenizeFn = Callable[[str], list[int]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        with ExitStack() as servers:
            streams, tokenize = _start(options, servers)
            rows = [
                row
                for length in options.prompts
                for count in options.streams
                for row in measure(streams, tokenize, length, count, options.new_tokens, options.rounds)
            ]
            loads = [
                row
                for length in options.prompts
                if options.loads
                for row in measure_load(streams, tokenize, length, options.loads, options.requests, options.new_tokens)
            ]
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    tables = {f"burst {options.dtype}": burst_table(rows), f"loads {options.dtype}": load_table(loads)}
    for name, text in tables.items():
        print(text, end="\n\n")
        if options.page and text:
            options.page.write_text(put(options.page.read_text(), name, text))
    if options.json:
        result = {"machine": _machine(options), "rows": rows, "loads": loads}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.plot and loads:
        plot_loads(loads, options.plot)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gradellm_bench.network", description=__doc__.split("\n\n")[1])
    parser.add_argument("--model", type=Path, required=True, metavar="PATH", help="checkpoint folder")
    parser.add_argument("--vllm", type=Path, metavar="DIR", help="a virtual environment that has vLLM, to compare with")
    parser.add_argument("--dtype", default="float32", help="of all servers (default: %(default)s)")
    parser.add_argument("--modes", nargs="+", default=list(MODES), metavar="MODE", help="default: all three")
    parser.add_argument("--prompts", nargs="+", type=int, default=[128, 512], metavar="N", help="tokens of a prompt")
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 8, 16], metavar="N", help="requests at once")
    parser.add_argument(
        "--new-tokens", type=int, default=48, metavar="N", help="of a completion (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--loads",
        nargs="*",
        type=int,
        default=[50, 80, 100, 120],
        metavar="PERCENT",
        help="of a server's capacity, for Poisson arrivals; none for no such runs (default: 50 80 100 120)",
    )
    parser.add_argument(
        "--requests", type=int, default=48, metavar="N", help="of a run with Poisson arrivals (default: %(default)s)"
    )
    parser.add_argument(
        "--server-args", nargs="*", default=[], metavar="ARG", help="flags of gradellm serve, without --"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here, too")
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="put the tables between their markers, which name the dtype, in this page",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="plot first tokens and gaps by load")
    return parser


def _start(options: argparse.Namespace, servers: ExitStack) -> tuple[dict[str, StreamFn], TokenizeFn]:
    """Start the servers; how each mode requests a stream, and how texts become prompts."""
    streams: dict[str, StreamFn] = {}
    if options.vllm is not None:
        vllm = servers.enter_context(VLLMServer(options.vllm, options.model, ["--dtype", options.dtype]))
        streams["vllm"] = vllm.stream
    ours = GradellmServer(
        options.model, ["--dtype", options.dtype, *(f"--{argument}" for argument in options.server_args)]
    )
    servers.enter_context(ours)
    for mode in options.modes:
        streams[mode] = partial(ours.stream, attribution=None if mode == "plain" else mode)
    return streams, ours.tokenize


def measure(
    streams: Mapping[str, StreamFn], tokenize: TokenizeFn, length: int, count: int, new_tokens: int, rounds: int
) -> list[Row]:
    """Medians of some rounds for `count` streams with prompts of `length` tokens: a row for each server and mode.

    Every run has prompts of its own, so that no prefix cache has them.
    """
    runs: dict[str, list[RunSummary]] = {name: [] for name in streams}
    for number in range(-1, rounds):  # the first warms up
        for seed, (name, stream) in enumerate(streams.items()):
            texts = new_texts(count + 1, length, 100 * number + seed)
            prompts = [tokenize(text)[:length] for text in texts]
            time.sleep(PAUSE_SECONDS)
            # The others' turns have taken the server's memory out of all caches, and some of it from the machine's.
            run_streams(stream, prompts[count:], WARM_UP_TOKENS)
            records = run_streams(stream, prompts[:count], new_tokens)
            if errors := {record.error for record in records if record.error}:
                raise ServerError(f"{name}: {', '.join(sorted(errors))}")
            if number >= 0:
                runs[name].append(RunSummary.of(records))
                _show(f"{length} tokens, {count} streams, {name}: {runs[name][-1].tokens_per_second:.1f} tokens/s")
    return [
        {"prompt": length, "streams": count, "server": name}
        | {
            field.name: statistics.median(getattr(run, field.name) for run in runs[name])
            for field in fields(RunSummary)
        }
        | {"runs": [asdict(run) for run in runs[name]]}
        for name in streams
    ]


def measure_load(
    streams: Mapping[str, StreamFn],
    tokenize: TokenizeFn,
    length: int,
    loads: Sequence[int],
    num_requests: int,
    new_tokens: int,
) -> list[Row]:
    """Poisson arrivals at some percentages of each server's capacity: a row for each server, mode and load.

    The capacity is how many requests a second a server completes of `num_requests` that are there from the start.
    """
    rows: list[Row] = []
    for seed, (name, stream) in enumerate(streams.items()):
        capacity = 0.0
        for load in (0, *loads):  # 0: all requests at the start, for the capacity
            prompts = [tokenize(text)[:length] for text in new_texts(num_requests, length, 1000 * load + seed)]
            rate = capacity * load / 100
            # Each server meets the same arrivals, at its own rate.
            arrivals = poisson_arrivals(num_requests, rate, seed=load) if load else None
            time.sleep(PAUSE_SECONDS)
            records = run_streams(stream, prompts, new_tokens, arrivals)
            if errors := {record.error for record in records if record.error and not record.is_refused}:
                raise ServerError(f"{name}: {', '.join(sorted(errors))}")
            summary = LoadSummary.of(records)
            if not load:
                capacity = summary.num_served / max(record.ended or 0.0 for record in records)
                _show(f"{length} tokens, {name}: {capacity:.2f} requests/s at capacity")
                continue
            rows.append(
                {"prompt": length, "server": name, "load": load, "rate": rate, "capacity": capacity} | asdict(summary)
            )
            _show(f"{length} tokens, {load}% of capacity, {name}: first token p95 {summary.first_token.p95:.0f} ms")
    return rows


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "model": options.model.name,
        "dtype": options.dtype,
        "new_tokens": options.new_tokens,
        "rounds": options.rounds,
        "server_args": options.server_args,
    }


def _show(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
