"""`python -m trials`: what must hold of a server that is left running, tried and written to docs/trials.md and .json.

Each trial starts a server of its own with the demo model. Started by `make trials`; no part of `make test`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trials import report, trials

DOCS = Path(__file__).parents[2] / "docs"
TITLES = {
    "fuzz": "Requests that nobody would send",
    "reading": "What hostile requests cost before they are taken or refused",
    "hostile": "Hostile requests beside streams",
    "cancel": "Streams cancelled at random moments",
    "overload": "Four times the load it can take",
    "ends": "SIGTERM, and a dead engine",
    "unread": "A client that never reads",
    "survive": "Servers that are killed under streams",
    "hosts": "Replicas on hosts of their own",
    "ray": "A data set over actors, one of which is killed",
    "client": "What the SDK costs",
    "soak": "Mixed traffic",
}


def main() -> int:
    """Run the trials that are asked for; 1 where something does not hold."""
    parser = argparse.ArgumentParser(prog="python -m trials", description=__doc__)
    parser.add_argument("trials", nargs="*", help=f"which: {', '.join(TITLES)} (default: all)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of requests and seconds (default: 1)")
    parser.add_argument("--soak-minutes", type=float, default=20.0, help="(default: 20)")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where trials.json and trials.md go")
    options = parser.parse_args()
    if unknown := set(options.trials) - set(TITLES):
        parser.error(f"no such trial: {', '.join(sorted(unknown))}")
    path = options.docs / "trials.json"
    document: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    holds = True
    for name in options.trials or TITLES:
        began = time.monotonic()
        print(f"{name}: {TITLES[name].lower()}", file=sys.stderr, flush=True)
        found = trials.soak(options.soak_minutes) if name == "soak" else getattr(trials, name)(options.scale)
        document[name] = {
            "at": datetime.now(UTC).isoformat(timespec="minutes"),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
            "scale": options.scale,
            "seconds": round(time.monotonic() - began),
            "findings": [asdict(finding) for finding in found],
        }
        holds &= all(finding.holds is not False for finding in found)
        path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        (options.docs / "trials.md").write_text(table(document))
        print(rows(name, document[name]), flush=True)
    return 0 if holds else 1


def table(document: dict[str, Any]) -> str:
    """All that was found, as Markdown."""
    head = (
        "# Trials\n\n"
        "What must hold of a server that is left running: found by `make trials` with the demo model (and where it is\n"
        "named, SmolLM2-135M-Instruct, found by `GRADELLM_REAL_MODELS`), the load from processes of its own on the\n"
        "same machine. Where a machine is shared, times vary.\n"
    )
    return head + "".join(rows(name, document[name]) for name in TITLES if name in document)


def rows(name: str, trial: dict[str, Any]) -> str:
    """One trial, as Markdown."""
    scale = "" if trial["scale"] == 1 or name == "soak" else f", at {trial['scale']:g} of the size"
    caption = f"{trial['at']}, {trial['machine']}, {trial['seconds']} s{scale}."
    return report.table(TITLES[name], caption, trial["findings"])


if __name__ == "__main__":
    sys.exit(main())
