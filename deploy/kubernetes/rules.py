"""`make deploy-rules`: writes the alert rules as a PrometheusRule, since Kustomize cannot embed a file in one.

`--check` writes nothing and fails if the PrometheusRule is out of date.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

DEPLOY = Path(__file__).parents[1]
RULES = DEPLOY / "monitoring" / "alerts.yml"
TARGET = DEPLOY / "kubernetes" / "components" / "monitoring" / "prometheus-rule.yaml"
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
        TARGET.write_text(rule(), encoding="utf-8")
        return 0
    if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == rule():
        return 0
    print(f"error: {TARGET.name} is out of date with {RULES.name}; run make deploy-rules", file=sys.stderr)
    return 1


def rule() -> str:
    """The PrometheusRule with the rules of the file."""
    lines = RULES.read_text(encoding="utf-8").splitlines(keepends=True)
    groups = "".join(line for line in lines if not line.startswith("#"))
    return HEAD + textwrap.indent(groups, "  ")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
