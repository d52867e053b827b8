"""`make real`: runs the tests that need real models or peers, and writes docs/real-models.md: what ran and skipped."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[1] / "docs" / "real-models.md"
HEAD = """\
# Tests with real models

`make real` runs the tests that need a real model or a real peer and writes this page. Models are found by
`GRADELLM_REAL_MODELS`, a folder with checkpoints of SmolLM2-135M-Instruct in `smollm2/` and of
Qwen2.5-Coder-1.5B-Instruct in `qwen/`; vLLM by `GRADELLM_VLLM` and Open WebUI by `GRADELLM_OPENWEBUI`, folders of
virtual environments. Tests without theirs skip. `make real OPTIONS="-m 'real and not slow'"` leaves out those that take
half an hour each.

| test | outcome |
| --- | --- |
"""


class Recorder:
    """Collects the outcome of each test."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            reason = ""
            if report.skipped and isinstance(report.longrepr, tuple):
                reason = ": " + str(report.longrepr[2]).removeprefix("Skipped: ")
            self.outcomes[report.nodeid] = report.outcome + reason


def main() -> int:
    """Run the tests and write the page; pytest's exit status."""
    recorder, options = Recorder(), sys.argv[1:]
    status = pytest.main(["-m", "real", "-rs", *options], plugins=[recorder])
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    counts = Counter(outcome.partition(":")[0] for outcome in recorder.outcomes.values())
    rows = "".join(f"| {name} | {outcome} |\n" for name, outcome in recorder.outcomes.items())
    summary = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
    how = f", with {shlex.join(options)}" if options else ""
    ran = f"{datetime.now(UTC):%Y-%m-%d}, commit {commit or 'unknown'}{how}: {summary}."
    DOCUMENT.write_text(f"{HEAD}{rows}\n{ran}\n")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
