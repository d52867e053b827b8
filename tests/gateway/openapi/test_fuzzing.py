"""Requests made from the OpenAPI document: none fails with 5xx, and answers are as it describes them.

`make fuzz-api` installs what makes the requests.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from support.http.calls import send

PROGRAM = next(iter((Path(__file__).parents[3] / ".cache").glob("schemathesis-*/bin/schemathesis")), None)
CASES = 2000
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
# Its request is a whole explanation, which is not made at random.
NEVER_RIGHT = {"POST /v1/gradellm/pictures"}


def statuses(report: Path) -> dict[str, Counter[int]]:
    """The answers' statuses of each operation."""
    found: dict[str, Counter[int]] = {}
    for line in report.read_text().splitlines():
        if (ended := json.loads(line).get("ScenarioFinished")) is not None:
            recorder = ended["recorder"]
            counts = found.setdefault(recorder["label"], Counter())
            counts.update(each["response"]["status_code"] for each in recorder.get("interactions", {}).values())
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(PROGRAM is None, reason="needs `make fuzz-api`")
def test_no_request_fails_through_the_gateways_fault(url: str, tmp_path: Path) -> None:
    operations = sum(len(methods) for methods in send(url, "GET", "/openapi.json")[2]["paths"].values())
    report = tmp_path / "report.ndjson"
    command = [str(PROGRAM), "run", f"{url}/openapi.json", "--checks", ",".join(CHECKS), "--phases", "examples,fuzzing"]
    # Operations without a body have few different cases, so that those with one need more.
    command += ["--max-examples", str(2 * CASES // operations), "--seed", "1", "--request-timeout", "60"]
    command += ["--generation-database", "none", "--no-color", "--continue-on-failure"]
    command += ["--report", "ndjson", "--report-ndjson-path", str(report)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=3500, check=False)
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
    by_operation = statuses(report)
    for name, counts in sorted(by_operation.items()):
        print(f"{name}: {counts.total()} cases, {dict(sorted(counts.items()))}")
    assert len(by_operation) == operations
    assert sum(counts.total() for counts in by_operation.values()) >= CASES
    assert {name for name, counts in by_operation.items() if not counts[200]} <= NEVER_RIGHT
