"""`make deploy-policies`: a policy scan, by checkov, of all that deploy/kubernetes renders, and of the Dockerfile.

    python deploy/kubernetes/policies.py PATH/TO/checkov

Pod templates of a LeaderWorkerSet, which checkov does not know, are scanned as pods. Whatever fails is an error, and so
is an exception without a reason: exceptions stand as annotations `checkov.io/skipN: CHECK=reason` at the resource.
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
LEAST_REASON = 20  # characters
LEAST_CHECKS = 500  # fewer, and the scan has not seen what it should


def main(arguments: list[str]) -> int:
    """Render, scan, tell; the exit status."""
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
    return tell(reports)


def rendered() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The base, each overlay and job, and resources that lie there without a kustomization."""
    jobs = [path.parent for path in sorted(KUBERNETES.glob("jobs/*/kustomization.yaml"))]
    for path in [*sorted(KUBERNETES.glob("overlays/*")), KUBERNETES / "base", *jobs]:
        made = subprocess.run(  # noqa: S603
            ["kubectl", "kustomize", str(path)],  # noqa: S607  (whichever kubectl is there)
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        yield path.name, [one for one in yaml.safe_load_all(made) if one]
    for path in sorted(KUBERNETES.glob("jobs/*.yaml")):
        yield f"jobs-{path.stem}", [one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one]


def leader_worker_pods(resources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pods that LeaderWorkerSets make, under the exceptions of their set and of their own."""
    made = []
    for one in resources:
        if one["kind"] != "LeaderWorkerSet":
            continue
        for key in ("leaderTemplate", "workerTemplate"):
            template = one["spec"]["leaderWorkerTemplate"][key]
            metadata = {
                **template["metadata"],
                "name": f"{one['metadata']['name']}-{key.lower()}",
                "namespace": one["metadata"]["namespace"],
                "annotations": {
                    **one["metadata"].get("annotations", {}),
                    **template["metadata"].get("annotations", {}),
                },
            }
            made.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
    return made


def tell(reports: list[dict[str, Any]]) -> int:
    """Print what failed, and each exception with its reason; the exit status."""
    results = [report["results"] for report in reports]
    passed = sum(len(one["passed_checks"]) for one in results)
    failed = [check for one in results for check in one["failed_checks"]]
    skipped = {
        (check["check_id"], check["check_name"], check["check_result"].get("suppress_comment") or "")
        for one in results for check in one["skipped_checks"]
    }  # fmt: skip
    for check in failed:
        print(f"FAILED {check['check_id']} {check['check_name']}: {check['resource']} ({check['file_path']})")
    for identifier, text, reason in sorted(skipped):
        print(f"exception {identifier} ({text}): {reason}")
    unexplained = [one for one in skipped if len(one[2]) < LEAST_REASON]
    print(
        f"{passed} checks passed, {len(failed)} failed, {len(skipped)} exceptions, {len(unexplained)} without a reason"
    )
    if passed < LEAST_CHECKS:
        print(f"error: only {passed} checks ran; {LEAST_CHECKS} at least were expected", file=sys.stderr)
    return int(bool(failed or unexplained) or passed < LEAST_CHECKS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
