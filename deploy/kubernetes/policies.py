"""`make deploy-policies`: a checkov policy scan of all rendered manifests of deploy/kubernetes, and of the Dockerfile.

    python deploy/kubernetes/policies.py PATH/TO/checkov

Pod templates of a LeaderWorkerSet, which checkov does not support, are scanned as pods. A failed check is an error, and
so is an exception without a reason. Exceptions are annotations `checkov.io/skipN: CHECK=reason` of the resource.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

KUBERNETES = Path(__file__).parent
DOCKERFILE = KUBERNETES.parent / "Dockerfile"
MIN_REASON_LENGTH = 20  # characters
MIN_CHECKS = 500  # fewer checks mean that the scan missed resources


def main(arguments: list[str]) -> int:
    """Render, scan, report; the exit status."""
    if len(arguments) != 1:
        print("usage: policies.py PATH/TO/checkov", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        for name, resources in rendered():
            path = Path(folder, f"{name.replace('/', '-')}.yaml")
            path.write_text(yaml.safe_dump_all([*resources, *leader_worker_pods(resources)]), encoding="utf-8")
        command = [arguments[0], "--framework", "kubernetes", "dockerfile", "--skip-download", "--output", "json"]
        command += ["--compact", "--file", *map(str, sorted(Path(folder).iterdir())), str(DOCKERFILE)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    try:
        reports: list[dict[str, Any]] = json.loads(ended.stdout)
    except ValueError:
        print(ended.stdout + ended.stderr, file=sys.stderr)
        return 1
    return report_results(reports)


def rendered() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Names and resources of the base, of each overlay and job, and of manifests without a kustomization."""
    jobs = [path.parent for path in sorted(KUBERNETES.glob("jobs/*/kustomization.yaml"))]
    for path in [*sorted(KUBERNETES.glob("overlays/*")), KUBERNETES / "base", *jobs]:
        manifests = subprocess.run(  # noqa: S603
            ["kubectl", "kustomize", str(path)],  # noqa: S607  (kubectl of the PATH)
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        yield path.name, [resource for resource in yaml.safe_load_all(manifests) if resource]
    for path in sorted(KUBERNETES.glob("jobs/*.yaml")):
        yield (
            f"jobs-{path.stem}",
            [resource for resource in yaml.safe_load_all(path.read_text(encoding="utf-8")) if resource],
        )


def leader_worker_pods(resources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pods of LeaderWorkerSets, with the exceptions of the set and of the template."""
    pods = []
    for resource in resources:
        if resource["kind"] != "LeaderWorkerSet":
            continue
        for key in ("leaderTemplate", "workerTemplate"):
            template = resource["spec"]["leaderWorkerTemplate"][key]
            metadata = {
                **template["metadata"],
                "name": f"{resource['metadata']['name']}-{key.lower()}",
                "namespace": resource["metadata"]["namespace"],
                "annotations": {
                    **resource["metadata"].get("annotations", {}),
                    **template["metadata"].get("annotations", {}),
                },
            }
            pods.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
    return pods


def report_results(reports: list[dict[str, Any]]) -> int:
    """Print failed checks, and exceptions with their reasons; the exit status."""
    results = [report["results"] for report in reports]
    passed = sum(len(result["passed_checks"]) for result in results)
    failed = [check for result in results for check in result["failed_checks"]]
    skipped = {
        (check["check_id"], check["check_name"], check["check_result"].get("suppress_comment") or "")
        for result in results for check in result["skipped_checks"]
    }  # fmt: skip
    for check in failed:
        print(f"FAILED {check['check_id']} {check['check_name']}: {check['resource']} ({check['file_path']})")
    for identifier, text, reason in sorted(skipped):
        print(f"exception {identifier} ({text}): {reason}")
    unexplained = [exception for exception in skipped if len(exception[2]) < MIN_REASON_LENGTH]
    print(
        f"{passed} checks passed, {len(failed)} failed, {len(skipped)} exceptions, {len(unexplained)} without a reason"
    )
    if passed < MIN_CHECKS:
        print(f"error: only {passed} checks ran; at least {MIN_CHECKS} were expected", file=sys.stderr)
    return int(bool(failed or unexplained) or passed < MIN_CHECKS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
