"""`make deploy-rules`: the alert rules as a PrometheusRule, in which Kustomize cannot put a file by itself.

`--check` writes nothing, and fails where what is written is not what the rules say.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

DEPLOY = Path(__file__).parents[1]
RULES = DEPLOY / "monitoring" / "alerts.yml"
MADE = DEPLOY / "kubernetes" / "components" / "monitoring" / "prometheus-rule.yaml"
HEAD = """\
# Made of deploy/monitoring/alerts.yml by `make deploy-rules`: change it there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: gradellm
  labels:
    app.kubernetes.io/name: gradellm
spec:
"""


def main(arguments: list[str]) -> int:
    """Write or check; the exit status."""
    if "--check" not in arguments:
        MADE.write_text(rule(), encoding="utf-8")
        return 0
    if MADE.is_file() and MADE.read_text(encoding="utf-8") == rule():
        return 0
    print(f"error: {MADE.name} is not what {RULES.name} makes; run make deploy-rules", file=sys.stderr)
    return 1


def rule() -> str:
    """The resource, with the rules as they stand in their file."""
    lines = RULES.read_text(encoding="utf-8").splitlines(keepends=True)
    groups = "".join(line for line in lines if not line.startswith("#"))
    return HEAD + textwrap.indent(groups, "  ")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
