"""`python -m trials.gpu`: a server on a GPU with a model of realistic size, from its start to its end.

It makes a checkpoint with random weights, serves it in a process of its own, sends requests by the SDK, and writes its
findings to gpu.json and gpu.md. Without a GPU it does nothing; `--device cpu --shape 125m` rehearses all trials except
those that exhaust a GPU's memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from gradellm_bench.models import SHAPES
from trials.gpu.evaluations import evaluations
from trials.gpu.lifecycle import GIB, drain, insufficient_memory, metrics, startup
from trials.gpu.memory import hold_memory, out_of_memory
from trials.gpu.requests import first_streams, many_streams, over_the_limits
from trials.gpu.server import START_SECONDS, save_model, start_server
from trials.gpu.streams import PROMPT
from trials.report import Finding, table

DOCS = Path(__file__).parents[3] / "docs"


def main() -> int:
    """Run the trials; 1 where a finding does not hold."""
    options = _parser().parse_args()
    if not (torch.cuda.is_available() or options.device == "cpu"):
        print("there is no GPU: no trial is run", file=sys.stderr)
        return 0
    if options.hold_memory:
        hold_memory(options.hold_memory)
        return 0
    if options.make:
        save_model(options.make, options.shape, torch.device(options.device))
        return 0
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # context managers end the server
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        return run_trials(options, Path(folder))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trials.gpu", description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="llama-3-8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--streams", type=int, default=32, help="streams at once (default: 32)")
    parser.add_argument("--new-tokens", type=int, default=128, help="tokens of each stream (default: 128)")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of streams with an evaluation (default: 4)")
    parser.add_argument("--scratch", type=Path, help="folder for the checkpoint (default: a temporary folder)")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of gpu.json and gpu.md")
    parser.add_argument("--parts", nargs="+", help="titles of trials to run (default: all)")
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="file for the server's log")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--hold-memory", type=float, help=argparse.SUPPRESS)
    return parser


class Document:
    """gpu.json and gpu.md, written after each trial."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        options.docs.mkdir(exist_ok=True)
        self._path: Path = options.docs / "gpu.json"
        self._trials: dict[str, Any] = json.loads(self._path.read_text()) if self._path.exists() else {}
        self.all_hold = True

    def run(self, title: str, trial: Callable[[], list[Finding]]) -> None:
        """Run a trial, unless --parts leaves it out, and write its findings; an exception is a finding."""
        options = self._options
        if options.parts and title not in options.parts:
            return
        start = time.monotonic()
        try:
            findings = trial()
        except Exception:  # later trials still run
            findings = [Finding("the trial failed", traceback.format_exc()[-1500:], "", False)]
        self.all_hold &= all(finding.holds is not False for finding in findings)
        self._trials[title] = {
            "at": datetime.now(UTC).isoformat(timespec="minutes"),
            "machine": _machine(options.device),
            "model": f"{options.shape}, {options.streams} streams at most",
            "seconds": round(time.monotonic() - start),
            "findings": [asdict(finding) for finding in findings],
        }
        self._path.write_text(json.dumps(self._trials, indent=1, ensure_ascii=False) + "\n")
        (options.docs / "gpu.md").write_text(page(self._trials))
        print(section(title, self._trials[title]), flush=True)


def run_trials(options: argparse.Namespace, folder: Path) -> int:
    """Run all trials on a checkpoint made in `folder`."""
    device, document = options.device, Document(options)
    if device != "cpu":
        document.run("Insufficient memory", lambda: insufficient_memory(None, device, "200GiB"))
    start = time.monotonic()
    make = [sys.executable, "-m", "trials.gpu", "--make", str(folder), "--shape", options.shape, "--device", device]
    subprocess.run(make, check=True, timeout=START_SECONDS)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"a checkpoint of {size / 1e9:.1f} GB in {time.monotonic() - start:.0f} s", flush=True)
    count, num_tokens = options.streams, options.new_tokens
    settings: dict[str, Any] = {"pis": [0.5], "samples": 1} if device == "cpu" else {}
    with start_server(folder, device, options.log, "--max-running", str(count)) as server:
        document.run("Start", lambda: startup(server))
        document.run("The first streams", lambda: first_streams(server, num_tokens))
        document.run("Many streams", lambda: many_streams(server, count, num_tokens))
        document.run("Requests beyond the limits", lambda: over_the_limits(server))
        if device != "cpu":
            document.run("Out of memory", lambda: out_of_memory(server, count, num_tokens))
        document.run("Evaluations", lambda: evaluations(server, num_tokens, options.rounds, **settings))
        document.run("Metrics", lambda: metrics(server))
        document.run("Stop", lambda: drain(server, 16, 2 * num_tokens))
    return 0 if document.all_hold else 1


def _machine(device: str) -> str:
    host = (
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    if device == "cpu":
        return f"{host}, {psutil.virtual_memory().total / GIB:.0f} GiB of memory"
    total = torch.cuda.get_device_properties(0).total_memory
    return f"{torch.cuda.get_device_name()} of {total / GIB:.0f} GiB, {host}"


def page(trials: dict[str, Any]) -> str:
    """All findings, as Markdown."""
    head = (
        "# A server on a GPU\n\n"
        "Requirements of a server on a GPU, checked by `python -m trials.gpu` (in tests/). A process on the\n"
        "same machine generates the load by the SDK. Models have a real model's shape and random weights; prompts\n"
        f"have {PROMPT} tokens unless another number is given.\n"
    )
    return head + "".join(section(title, trial) for title, trial in trials.items())


def section(title: str, trial: dict[str, Any]) -> str:
    """One trial, as Markdown, with the note that its JSON may have below."""
    caption = f"{trial['at']}, {trial['model']}; {trial['machine']}; {trial['seconds']} s."
    return table(title, caption, trial["findings"]) + (f"\n{trial['note']}\n" if "note" in trial else "")


if __name__ == "__main__":
    sys.exit(main())
