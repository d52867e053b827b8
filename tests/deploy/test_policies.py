"""The policy scan: its findings and its exceptions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.manifests import DEPLOY, PROJECT, built, kubectl, of_kind, pods
from deploy.test_drift import module

SCRIPT = DEPLOY / "kubernetes" / "policies.py"


def scanned(failed: int = 0, reasons: tuple[str, ...] = (), passed: int = 1000) -> list[dict[str, Any]]:
    check = {"check_id": "C", "check_name": "n", "resource": "r", "file_path": "f"}
    skipped = [{**check, "check_result": {"suppress_comment": reason}} for reason in reasons]
    return [
        {"results": {"passed_checks": [check] * passed, "failed_checks": [check] * failed, "skipped_checks": skipped}}
    ]


@pytest.mark.parametrize(
    ("reports", "status"),
    [
        (scanned(), 0),
        (scanned(reasons=("because it is so, and why",)), 0),
        (scanned(reasons=("because",)), 1),
        (scanned(reasons=("",)), 1),
        (scanned(failed=1), 1),
        (scanned(passed=3), 1),  # it has not seen what it should
    ],
)
def test_failures_and_skips_without_a_reason_are_errors(reports: list[dict[str, Any]], status: int) -> None:
    assert module(SCRIPT).report_results(reports) == status


def test_pods_of_a_group_are_scanned_under_their_own_exceptions() -> None:
    resources = built("overlays/tensor-parallel")
    (group,) = of_kind(resources, "LeaderWorkerSet")
    leader, worker = module(SCRIPT).leader_worker_pods(resources)
    assert [leader["spec"], worker["spec"]] == [pod["spec"] for pod in pods(group)]
    assert set(worker["metadata"]["annotations"]) > set(group["metadata"]["annotations"])


@pytest.mark.slow
def test_the_scan_finds_nothing() -> None:
    kubectl()
    found = sorted(Path(PROJECT, ".cache").glob("checkov-*/bin/checkov"))
    if not found:
        pytest.skip("checkov is not installed; `make deploy-policies` installs and runs it")
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), str(found[-1])], capture_output=True, text=True, check=False, timeout=280
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
