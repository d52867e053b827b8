"""The manifests of deploy/kubernetes, rendered by kubectl, and queries on them."""

from __future__ import annotations

import copy
import functools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

PROJECT = Path(__file__).parents[2]
DEPLOY = PROJECT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
SCHEMAS = KUBERNETES / "schemas"
OVERLAYS = sorted(path.parent.name for path in KUBERNETES.glob("overlays/*/kustomization.yaml"))
COMPONENTS = sorted(path.parent.name for path in KUBERNETES.glob("components/*/kustomization.yaml"))
# Applied manifests: base and overlays, and resources without a kustomization.
BUILDS = [
    "base",
    *(f"overlays/{name}" for name in OVERLAYS),
    *sorted(str(path.relative_to(KUBERNETES)) for path in KUBERNETES.glob("jobs/*.yaml")),
    *sorted(str(path.parent.relative_to(KUBERNETES)) for path in KUBERNETES.glob("jobs/*/kustomization.yaml")),
]
Resource = dict[str, Any]


def kubectl() -> str:
    """The program's path; skips the test where it is missing."""
    found = shutil.which("kubectl")
    if found is None:
        pytest.skip("kubectl is not installed: what it renders is not checked")
    return found


def render(folder: Path) -> list[Resource]:
    """The rendered resources of a kustomization."""
    ended = subprocess.run(
        [kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    return [resource for resource in yaml.safe_load_all(ended.stdout) if resource]


@functools.cache
def _built(name: str) -> list[Resource]:
    path = KUBERNETES / name
    if path.is_dir():
        return render(path)
    return [resource for resource in yaml.safe_load_all(path.read_text()) if resource]


def built(name: str) -> list[Resource]:
    """The resources of one of `BUILDS`, to do as one likes with."""
    return copy.deepcopy(_built(name))


def of_kind(resources: list[Resource], kind: str) -> list[Resource]:
    return [resource for resource in resources if resource["kind"] == kind]


def pods(resource: Resource) -> Iterator[Resource]:
    """A resource's pod templates, as pods; in a LeaderWorkerSet there are two."""
    spec = resource.get("spec", {})
    templates = [spec.get("template"), *(spec.get("leaderWorkerTemplate", {}).get(key) for key in LEADER_WORKER)]
    for template in templates:
        if template is not None and "containers" in template.get("spec", {}):
            pod = copy.deepcopy(template)
            name, namespace = resource["metadata"]["name"], resource["metadata"].get("namespace", "")
            pod.setdefault("metadata", {}).update(name=name, namespace=namespace)
            yield {"apiVersion": "v1", "kind": "Pod", **pod}


LEADER_WORKER = ("leaderTemplate", "workerTemplate")


def containers(resources: list[Resource]) -> Iterator[tuple[Resource, Resource]]:
    """Each container with its pod."""
    for resource in resources:
        for pod in pods(resource):
            for container in pod["spec"]["containers"]:
                yield pod, container


def labels(resource: Resource) -> dict[str, str]:
    return dict(resource["metadata"].get("labels", {}))


def selects(selector: dict[str, Any], pod_labels: dict[str, str]) -> bool:
    """Whether a selector (matchLabels, matchExpressions with In, or plain labels) takes what has these labels."""
    plain = "matchLabels" not in selector and "matchExpressions" not in selector
    wanted = selector if plain else selector.get("matchLabels", {})
    for expression in [] if plain else selector.get("matchExpressions", []):
        assert expression["operator"] == "In", expression
        if pod_labels.get(expression["key"]) not in expression["values"]:
            return False
    return all(pod_labels.get(key) == value for key, value in wanted.items())


def schema_of(resource: Resource) -> Any | None:
    """The vendored schema of a custom resource, if it is one."""
    path = SCHEMAS / f"{resource['apiVersion'].replace('/', '_')}_{resource['kind']}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def seconds(text: str) -> float:
    """What Kubernetes and compose write as a duration: 15m, 45s."""
    match = re.fullmatch(r"(\d+)(s|m|h)", text)
    assert match is not None, text
    return int(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
