"""`python -m trials`: trials of a server that runs for long, written to docs/trials.md and .json (`make trials`).

Each trial starts servers of its own with the demo model. No trial is part of `make test`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trials import report
from trials.client_cost import client
from trials.network.hosts import hosts
from trials.ray_actors import ray
from trials.robustness.cancellation import cancel
from trials.robustness.fuzz import fuzz
from trials.robustness.hostile import hostile, reading
from trials.robustness.overload import overload, unread
from trials.robustness.server_kills import survive
from trials.robustness.shutdown import shutdown
from trials.robustness.soak import soak

DOCS = Path(__file__).parents[2] / "docs"
# By name: the section's title in docs/trials.md, and the trial, a function of the scale (the soak: of minutes).
TRIALS: dict[str, tuple[str, Callable[[float], list[report.Finding]]]] = {
    "fuzz": ("Random and malformed requests", fuzz),
    "reading": ("CPU time of hostile requests until admission or rejection", reading),
    "hostile": ("Hostile requests beside streams", hostile),
    "cancel": ("Streams cancelled at random moments", cancel),
    "overload": ("Overload at four times the capacity", overload),
    "ends": ("SIGTERM, and a dead engine", shutdown),
    "unread": ("A client that never reads", unread),
    "survive": ("Servers that are killed under streams", survive),
    "hosts": ("Replicas on hosts of their own", hosts),
    "ray": ("A data set over actors, one of which is killed", ray),
    "client": ("CPU time of the SDK", client),
    "soak": ("Mixed traffic", soak),
}


def main() -> int:
    """Run the chosen trials; 1 where a finding does not hold."""
    parser = argparse.ArgumentParser(prog="python -m trials", description=__doc__)
    parser.add_argument("trials", nargs="*", help=f"names, of {', '.join(TRIALS)} (default: all)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on requests and seconds (default: 1)")
    parser.add_argument("--soak-minutes", type=float, default=20.0, help="(default: 20)")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of trials.json and trials.md")
    options = parser.parse_args()
    if unknown := set(options.trials) - set(TRIALS):
        parser.error(f"no such trial: {', '.join(sorted(unknown))}")
    path = options.docs / "trials.json"
    document: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    all_hold = True
    for name in options.trials or TRIALS:
        title, trial = TRIALS[name]
        start = time.monotonic()
        print(f"{name}: {title.lower()}", file=sys.stderr, flush=True)
        findings = trial(options.soak_minutes if name == "soak" else options.scale)
        document[name] = {
            "at": datetime.now(UTC).isoformat(timespec="minutes"),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
            "scale": options.scale,
            "seconds": round(time.monotonic() - start),
            "findings": [asdict(finding) for finding in findings],
        }
        all_hold &= all(finding.holds is not False for finding in findings)
        path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        (options.docs / "trials.md").write_text(page(document))
        print(section(name, document[name]), flush=True)
    return 0 if all_hold else 1


def page(document: dict[str, Any]) -> str:
    """All findings, as Markdown."""
    head = (
        "# Trials\n\n"
        "Requirements of a server that runs for long, checked by `make trials` with the demo model (and, where\n"
        "named, SmolLM2-135M-Instruct from the folder `GRADELLM_REAL_MODELS`). Separate processes on the same\n"
        "machine generate the load. On a shared machine, times vary.\n"
    )
    return head + "".join(section(name, document[name]) for name in TRIALS if name in document)


def section(name: str, trial: dict[str, Any]) -> str:
    """One trial, as Markdown."""
    scale = "" if trial["scale"] == 1 or name == "soak" else f", at {trial['scale']:g} of the size"
    caption = f"{trial['at']}, {trial['machine']}, {trial['seconds']} s{scale}."
    return report.table(TRIALS[name][0], caption, trial["findings"])


if __name__ == "__main__":
    sys.exit(main())
