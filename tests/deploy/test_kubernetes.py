"""deploy/kubernetes: all manifests render, validate against the schemas, and are consistent."""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from deploy.manifests import (
    BUILDS,
    COMPONENTS,
    DEPLOY,
    KUBERNETES,
    OVERLAYS,
    SCHEMAS,
    Resource,
    built,
    containers,
    labels,
    of_kind,
    pods,
    render,
    schema_of,
    selects,
)
from gradellm import __version__

kubernetes_validate = pytest.importorskip("kubernetes_validate")
jsonschema = pytest.importorskip("jsonschema")
OLDEST, NEWEST = "1.30", "1.37"  # the probes' and preStop's fields exist from the first one on
# Components that patch or name what another one brings.
NEEDS = {
    "keda": ["replicas", "monitoring"],
    "keda-follow": ["replicas", "monitoring", "keda"],
    "routes": ["http-gateway"],
    "tls-to-servers": ["tls", "http-gateway", "routes"],
    "tokens": ["tls"],
    "vllm": ["model-volume", "http-gateway"],
    "vllm-tokens": ["model-volume", "tls", "tokens", "http-gateway", "routes", "tls-to-servers", "vllm"],
}
CLUSTER_WIDE = {"Namespace"}


def errors(resource: Resource, version: str = NEWEST) -> list[str]:
    """What is wrong with a resource, by Kubernetes' own schemas (strictly) or by its vendored one."""
    schema = schema_of(resource)
    if schema is not None:
        found = jsonschema.Draft202012Validator(schema).iter_errors(resource)
        return [f"{error.json_path}: {error.message}" for error in found]
    try:
        kubernetes_validate.validate(resource, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{list(error.path)}: {error.message}"]
    return []


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", BUILDS)
def test_manifests_match_their_schemas(name: str, version: str) -> None:
    resources = built(name)
    assert resources
    for resource in resources:
        assert errors(resource, version) == [], f"{resource['kind']}/{resource['metadata']['name']}"
        for pod in pods(resource):
            assert errors(pod, version) == [], f"{resource['kind']}/{resource['metadata']['name']}"


def test_overlays_are_those_that_are_promised() -> None:
    servers = {"cpu", "gpu", "tls", "gateway", "keda", "monitoring", "multi-replica", "tensor-parallel", "production"}
    assert set(OVERLAYS) == servers | {"vllm", "production-vllm"}


@pytest.mark.parametrize("name", COMPONENTS)
def test_components_render_with_their_requirements_only(name: str, tmp_path: Path) -> None:
    paths = [
        os.path.relpath(KUBERNETES / "components" / component, tmp_path.resolve())
        for component in [*NEEDS.get(name, []), name]
    ]
    base = os.path.relpath(KUBERNETES / "base", tmp_path.resolve())
    listed = "".join(f"  - {path}\n" for path in paths)
    (tmp_path / "kustomization.yaml").write_text(
        f"kind: Kustomization\nnamespace: gradellm\nresources:\n  - {base}\ncomponents:\n{listed}"
    )
    for resource in render(tmp_path):
        assert errors(resource) == []


def test_schemas_refuse_unknown_fields() -> None:
    seen = set()
    for name in BUILDS:
        for resource in built(name):
            seen.add(f"{resource['apiVersion'].replace('/', '_')}_{resource['kind']}.json")
            assert errors({**resource, "surprise": 1}), resource["kind"]
            if isinstance(resource.get("spec"), dict):
                changed = copy.deepcopy(resource)
                changed["spec"]["surprise"] = 1
                assert errors(changed), resource["kind"]
    vendored = {path.name for path in SCHEMAS.glob("*_*.json")}
    assert vendored <= seen, "a schema of nothing that is used"


def test_a_kind_without_any_schema_is_no_pass() -> None:
    with pytest.raises(kubernetes_validate.SchemaNotFoundError):
        errors({"apiVersion": "example.org/v1", "kind": "Unknown", "metadata": {"name": "a"}})


@pytest.mark.parametrize("name", BUILDS)
def test_resources_are_in_the_namespace_and_labelled(name: str) -> None:
    for resource in built(name):
        full_name = f"{resource['kind']}/{resource['metadata']['name']}"
        if resource["kind"] not in CLUSTER_WIDE:
            assert resource["metadata"].get("namespace") == "gradellm", full_name
        for pod in pods(resource):
            assert labels(pod)["app.kubernetes.io/part-of"] == "gradellm", full_name
            assert labels(pod)["app.kubernetes.io/version"] == __version__, full_name


@pytest.mark.parametrize("name", BUILDS)
def test_pods_meet_the_restricted_standard(name: str) -> None:
    """Kubernetes' own list of it, and a root that cannot be written."""
    found = list(containers(built(name)))
    assert found
    for pod, container in found:
        spec, security = pod["spec"], pod["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True
        assert min(security["runAsUser"], security["runAsGroup"]) > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        kinds = {kind for volume in spec.get("volumes", []) for kind in volume if kind != "name"}
        assert kinds <= {"emptyDir", "secret", "configMap", "persistentVolumeClaim", "projected"}


@pytest.mark.parametrize("name", BUILDS)
def test_mounts_have_volumes_and_models_are_only_read(name: str) -> None:
    for pod, container in containers(built(name)):
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        mounts = container.get("volumeMounts", [])
        assert {mount["name"] for mount in mounts} == set(volumes)
        assert len({mount["mountPath"] for mount in mounts}) == len(mounts)
        for mount in mounts:
            volume = volumes[mount["name"]]
            if "emptyDir" in volume:
                assert "sizeLimit" in volume["emptyDir"]
            elif "persistentVolumeClaim" in volume and container["name"] in ("server", "rank", "vllm"):
                assert mount["readOnly"] is True
                assert volume["persistentVolumeClaim"]["readOnly"] is True
            elif "secret" in volume:
                assert mount["readOnly"] is True
                assert "subPath" not in mount  # else a renewed one never arrives
                assert volume["secret"]["defaultMode"] == 0o440


@pytest.mark.parametrize("name", [f"overlays/{name}" for name in OVERLAYS])
def test_references_between_manifests_resolve(name: str) -> None:
    """Selectors pods, ports ports, routes services, policies routes."""
    resources = built(name)
    all_pods = [pod for resource in resources for pod in pods(resource)]
    services = {item["metadata"]["name"]: item for item in of_kind(resources, "Service")}
    for service in services.values():
        chosen = [pod for pod in all_pods if selects(service["spec"]["selector"], labels(pod))]
        assert len(chosen) == 1, f"{service['metadata']['name']} selects {len(chosen)} kinds of pods"
        names = {port["name"] for item in chosen for c in item["spec"]["containers"] for port in c.get("ports", [])}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    for budget in of_kind(resources, "PodDisruptionBudget"):
        assert any(selects(budget["spec"]["selector"], labels(pod)) for pod in all_pods)
    for policy in of_kind(resources, "NetworkPolicy"):
        chosen = [pod for pod in all_pods if selects(policy["spec"]["podSelector"], labels(pod))]
        exposed = {port[key] for pod in chosen for c in pod["spec"]["containers"] for port in c.get("ports", [])
                 for key in ("name", "containerPort")}  # fmt: skip
        for rule in policy["spec"].get("ingress", []):
            assert {port["port"] for port in rule.get("ports", [])} <= exposed, policy["metadata"]["name"]
    for scaled in of_kind(resources, "ScaledObject"):
        (deployment,) = [
            item for item in of_kind(resources, "Deployment")
            if item["metadata"]["name"] == scaled["spec"]["scaleTargetRef"]["name"]
        ]  # fmt: skip
        assert "replicas" not in deployment["spec"]  # whose number is the scaler's
    gateways = {item["metadata"]["name"]: item for item in of_kind(resources, "Gateway")}
    routes = {
        (kind, item["metadata"]["name"]): item
        for kind in ("GRPCRoute", "HTTPRoute")
        for item in of_kind(resources, kind)
    }
    for (kind, _), route in routes.items():
        for parent in route["spec"]["parentRefs"]:
            (listener,) = [
                item for item in gateways[parent["name"]]["spec"]["listeners"] if item["name"] == parent["sectionName"]
            ]
            assert kind in [allowed["kind"] for allowed in listener["allowedRoutes"]["kinds"]]
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                assert backend["port"] in [port["port"] for port in services[backend["name"]]["spec"]["ports"]]
    for kind in ("BackendTrafficPolicy", "ClientTrafficPolicy", "BackendTLSPolicy"):
        for policy in of_kind(resources, kind):
            for target in policy["spec"]["targetRefs"]:
                found = {**{("Service", name): item for name, item in services.items()}, **routes,
                         **{("Gateway", name): item for name, item in gateways.items()}}  # fmt: skip
                assert (target["kind"], target["name"]) in found
    targeted = {
        (target["kind"], target["name"])
        for policy in of_kind(resources, "BackendTrafficPolicy") for target in policy["spec"]["targetRefs"]
    }  # fmt: skip
    assert set(routes) <= targeted, "a route whose streams end after Envoy's 15 s"


def test_streams_have_no_timeout_and_may_be_silent() -> None:
    (policy,) = of_kind(built("overlays/gateway"), "BackendTrafficPolicy")
    assert policy["spec"]["timeout"]["http"] == {
        "requestTimeout": "0s",
        "maxStreamDuration": "0s",
        "streamIdleTimeout": "15m",
    }
    (client,) = of_kind(built("overlays/gateway"), "ClientTrafficPolicy")
    assert client["spec"]["timeout"]["http"]["streamIdleTimeout"] == "15m"
    (route,) = of_kind(built("overlays/gateway"), "HTTPRoute")
    assert [rule["timeouts"] for rule in route["spec"]["rules"]] == [{"request": "0s"}]


def test_prometheus_finds_each_server_once_and_under_the_rules_name() -> None:
    resources = built("overlays/production")
    (monitor,) = of_kind(resources, "ServiceMonitor")
    (service,) = [item for item in of_kind(resources, "Service") if selects(monitor["spec"]["selector"], labels(item))]
    assert service["spec"]["clusterIP"] == "None"
    assert [item["port"] for item in monitor["spec"]["endpoints"]] == ["metrics"]
    assert "metrics" in [port["name"] for port in service["spec"]["ports"]]
    job = labels(service)[monitor["spec"]["jobLabel"]]
    assert f'job="{job}"' in (DEPLOY / "monitoring" / "alerts.yml").read_text()


def test_ranks_are_found_by_no_service_and_run_the_same_command() -> None:
    resources = built("overlays/tensor-parallel")
    assert not of_kind(resources, "Deployment")
    (group,) = of_kind(resources, "LeaderWorkerSet")
    assert group["spec"]["leaderWorkerTemplate"]["restartPolicy"] == "RecreateGroupOnPodRestart"
    leader, worker = pods(group)
    (server,), (rank,) = leader["spec"]["containers"], worker["spec"]["containers"]
    for key in ("command", "args", "env", "resources", "volumeMounts", "image"):
        assert server[key] == rank[key], key
    assert not [item for item in of_kind(resources, "Service") if selects(item["spec"]["selector"], labels(worker))]
    assert not [key for key in rank if key.endswith("Probe")]
    for item in (server, rank):
        arguments = dict(argument.lstrip("-").partition("=")[::2] for argument in item["args"])
        assert arguments["nproc-per-node"] == item["resources"]["limits"]["nvidia.com/gpu"]
    assert "/dev/shm" in [mount["mountPath"] for mount in rank["volumeMounts"]]


def test_gpu_overlays_ask_for_gpus_and_for_the_image_that_uses_them() -> None:
    for name in OVERLAYS:
        for pod, container in containers(built(f"overlays/{name}")):
            has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
            assert has_gpu == bool(re.search(r"-cuda$|/vllm-openai:", container["image"])), name
            assert has_gpu == any(
                toleration["key"] == "nvidia.com/gpu" for toleration in pod["spec"].get("tolerations", [])
            ), name


def test_an_update_takes_no_gpu_that_is_not_there() -> None:
    (deployment,) = of_kind(built("overlays/gpu"), "Deployment")
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    (deployment,) = of_kind(built("overlays/cpu"), "Deployment")
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def secrets_of(resources: list[Resource]) -> set[str]:
    """Secrets, configurations and claims that pods and gateways name and the files do not bring."""
    named: set[str] = set()
    for resource in resources:
        for pod in pods(resource):
            for volume in pod["spec"].get("volumes", []):
                named |= {volume["secret"]["secretName"]} if "secret" in volume else set()
                named |= {volume["configMap"]["name"]} if "configMap" in volume else set()
    text = re.findall(r"'name': '(gradellm-[a-z-]*tls)'", str([one for one in resources if one["kind"] == "Gateway"]))
    return named | set(text)


def test_the_readme_documents_every_secret() -> None:
    readme = (DEPLOY / "README.md").read_text()
    needed: set[str] = set().union(*(secrets_of(built(f"overlays/{name}")) for name in OVERLAYS))
    servers = {"gradellm-tls", "gradellm-tokens", "gradellm-ca", "gradellm-gateway-tls"}
    assert needed == servers | {"gradellm-vllm", "gradellm-gateway-token"}
    for name in needed:
        assert re.search(rf"kubectl create (secret|configmap) .*{name}\b", readme), name


def test_the_readme_has_every_overlay_and_component() -> None:
    readme = (DEPLOY / "README.md").read_text()
    for name in (*OVERLAYS, *COMPONENTS):
        assert f"`{name}`" in readme, name


def test_schemas_are_closed() -> None:
    """An object with named properties takes no further ones, unless the definition allows them."""
    for path in SCHEMAS.glob("*_*.json"):
        schema: Any = json.loads(path.read_text())
        assert schema["additionalProperties"] is False
        assert schema["properties"]["metadata"]["additionalProperties"] is False
