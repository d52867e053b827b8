"""vLLM beside a server: the gateway's upstream, the same model, probes, times to stop, caches, keys, Compose.

GRADELLM_VLLM is the folder of a virtual environment with vLLM, whose parser is then asked for the flags.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from deploy.manifests import PROJECT, Resource, built, containers, labels, of_kind, pods, seconds, selects
from deploy.test_drift import MARGIN_SECONDS, compose, server_options
from gradellm_gateway.__main__ import _parser as gateway_parser

OVERLAYS = ["overlays/vllm", "overlays/production-vllm"]
GUIDE = PROJECT / "docs" / "guides" / "vllm.md"
PORT = 8000
MODEL = "/models/model"
PARSE = """
import json, sys
from vllm.entrypoints.cli.serve import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
options = make_arg_parser(FlexibleArgumentParser()).parse_args(sys.argv[1:])
print(json.dumps([options.model_tag, options.served_model_name, options.host, options.port, options.shutdown_timeout]))
"""


def container(name: str, wanted: str) -> tuple[Resource, Resource]:
    """The pod and container of a build whose container has a name."""
    (found,) = [(pod, one) for pod, one in containers(built(name)) if one["name"] == wanted]
    return found


def flags(arguments: list[str]) -> dict[str, str]:
    return dict(argument.removeprefix("--").partition("=")[::2] for argument in arguments if argument.startswith("--"))


def gateway_options(name: str) -> argparse.Namespace:
    return gateway_parser().parse_args(container(name, "gateway")[1]["args"][1:])


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_gateways_upstream_is_vllms_service(name: str) -> None:
    (service,) = [item for item in of_kind(built(name), "Service") if item["metadata"]["name"] == "vllm"]
    _, vllm = container(name, "vllm")
    assert gateway_options(name).upstream == f"http://vllm:{service['spec']['ports'][0]['port']}/v1"
    assert int(flags(vllm["args"])["port"]) == vllm["ports"][0]["containerPort"] == PORT


@pytest.mark.parametrize("name", OVERLAYS)
def test_both_engines_read_the_same_files(name: str) -> None:
    mounted = set()
    for wanted in ("vllm", "server"):
        pod, one = container(name, wanted)
        (mount,) = [mount for mount in one["volumeMounts"] if mount["name"] == "models"]
        (volume,) = [volume for volume in pod["spec"]["volumes"] if volume["name"] == "models"]
        mounted.add((mount["mountPath"], volume["persistentVolumeClaim"]["claimName"]))
    assert len(mounted) == 1
    assert server_options(container(name, "server")[1]["args"][1:]).model == MODEL
    assert container(name, "vllm")[1]["args"][0] == MODEL


def peers(policies: list[Resource], pod: Resource, direction: str) -> list[Any]:
    """The pods' selectors that all policies on a pod allow in a direction on vLLM's port."""
    found = []
    for policy in policies:
        if selects(policy["spec"]["podSelector"], labels(pod)):
            for rule in policy["spec"].get(direction, []):
                if {port["port"] for port in rule["ports"]} & {"http", PORT}:
                    found += rule["from" if direction == "ingress" else "to"]
    return found


@pytest.mark.parametrize("name", OVERLAYS)
def test_only_the_gateway_reaches_vllm(name: str) -> None:
    policies = of_kind(built(name), "NetworkPolicy")
    vllm, gateway = container(name, "vllm")[0], container(name, "gateway")[0]
    (caller,) = peers(policies, vllm, "ingress")
    assert set(caller) == {"podSelector"}
    allowed = [labels(pod)["app.kubernetes.io/component"] for resource in built(name) for pod in pods(resource)
               if selects(caller["podSelector"], labels(pod))]  # fmt: skip
    assert allowed == ["gateway"]
    assert any(selects(peer["podSelector"], labels(vllm)) for peer in peers(policies, gateway, "egress"))
    own = [p for p in policies if p["spec"]["podSelector"] and selects(p["spec"]["podSelector"], labels(vllm))]
    assert all(policy["spec"].get("egress", []) == [] for policy in own)


@pytest.mark.parametrize("name", OVERLAYS)
def test_probes_ask_vllms_own_health_and_there_is_time_to_stop_in(name: str) -> None:
    pod, vllm = container(name, "vllm")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert vllm[probe]["httpGet"] == {"path": "/health", "port": "http"}
    assert vllm["startupProbe"]["periodSeconds"] * vllm["startupProbe"]["failureThreshold"] >= 1800
    drain = int(flags(vllm["args"])["shutdown-timeout"])
    sleep = vllm["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["spec"]["terminationGracePeriodSeconds"] >= sleep + drain + MARGIN_SECONDS


@pytest.mark.parametrize("name", OVERLAYS)
def test_vllm_writes_to_volumes_only_and_gets_no_links_to_services(name: str) -> None:
    pod, vllm = container(name, "vllm")
    assert pod["spec"]["enableServiceLinks"] is False  # a Service vllm sets VLLM_PORT to a URL
    variables = {one["name"]: one.get("value", "") for one in vllm["env"]}
    assert {"HOME", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"} <= set(variables)
    written = {value for value in variables.values() if value.startswith("/")}
    assert all(value == "/cache" or value.startswith("/cache/") for value in written)
    assert {"/cache", "/tmp", "/dev/shm"} <= {mount["mountPath"] for mount in vllm["volumeMounts"]}


def test_in_production_callers_need_a_key_and_the_gateway_has_a_token() -> None:
    name = "overlays/production-vllm"
    options = gateway_options(name)
    pod, gateway = container(name, "gateway")
    secrets = {volume["name"]: volume["secret"] for volume in pod["spec"]["volumes"] if "secret" in volume}
    files = {
        f"{mount['mountPath']}/{item['path']}": (secrets[mount["name"]]["secretName"], item["key"])
        for mount in gateway["volumeMounts"] if mount["name"] in secrets for item in secrets[mount["name"]]["items"]
    }  # fmt: skip
    assert files[options.target_token_file] == ("gradellm-gateway-token", "token")
    assert options.target_tls_ca, "tokens are not sent in plain text"
    (key,) = [one for one in container(name, "vllm")[1]["env"] if one["name"] == "VLLM_API_KEY"]
    reference = key["valueFrom"]["secretKeyRef"]
    assert files[options.upstream_token_file] == (reference["name"], reference["key"])


def test_compose_runs_the_same_vllm() -> None:
    services = compose("compose.vllm.yaml")["services"]
    vllm, (_, pods_vllm) = services["vllm"], container("overlays/vllm", "vllm")
    assert vllm["image"] == pods_vllm["image"]
    assert vllm["entrypoint"] == pods_vllm["command"]
    ours, theirs = flags(vllm["command"]), flags(pods_vllm["args"])
    assert vllm["command"][0] == pods_vllm["args"][0] == MODEL
    assert {**ours, "shutdown-timeout": theirs["shutdown-timeout"]} == theirs
    assert vllm["environment"] == {one["name"]: one["value"] for one in pods_vllm["env"]}
    assert seconds(vllm["stop_grace_period"]) >= int(ours["shutdown-timeout"]) + MARGIN_SECONDS
    assert vllm["read_only"] is True
    assert vllm["cap_drop"] == ["ALL"]
    assert vllm["security_opt"] == ["no-new-privileges:true"]
    assert "ports" not in vllm
    assert f"http://127.0.0.1:{PORT}/health" in vllm["healthcheck"]["test"][-1]


def test_composes_gateway_passes_on_to_vllm_on_another_gpu() -> None:
    services = compose("compose.vllm.yaml")["services"]
    options = gateway_parser().parse_args(services["gateway"]["command"][1:])
    plain = gateway_parser().parse_args(compose("compose.yaml")["services"]["gateway"]["command"][1:])
    assert options.upstream == f"http://vllm:{PORT}/v1"
    assert vars(options) == {**vars(plain), "upstream": options.upstream, "upstream_dtype": options.upstream_dtype}
    server, vllm = compose("compose.gpu.yaml")["services"]["server"], services["vllm"]
    assert server["volumes"] == vllm["volumes"]
    (first,), (second,) = (item["deploy"]["resources"]["reservations"]["devices"] for item in (server, vllm))
    assert first["count"] == 1  # the first
    assert second["device_ids"] == ["1"]


def test_the_guide_says_how_to_start_both() -> None:
    guide = GUIDE.read_text()
    assert "-f deploy/compose.yaml -f deploy/compose.gpu.yaml -f deploy/compose.vllm.yaml" in guide
    for name in OVERLAYS:
        assert f"deploy/kubernetes/{name}" in guide or f"`{name.removeprefix('overlays/')}`" in guide


@pytest.mark.real
@pytest.mark.parametrize("name", ["overlays/vllm", "compose.vllm.yaml"])
def test_vllms_parser_takes_the_flags(name: str) -> None:
    """Of the version that the image has."""
    python = Path(os.environ.get("GRADELLM_VLLM", "")) / "bin" / "python"
    if not python.is_file():
        pytest.skip("GRADELLM_VLLM is not set to a virtual environment with vLLM")
    is_compose = name.startswith("compose")
    command = compose(name)["services"]["vllm"]["command"] if is_compose else container(name, "vllm")[1]["args"]
    ended = subprocess.run(
        [str(python), "-c", PARSE, *command],
        env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    expected = [MODEL, ["model"], "0.0.0.0", PORT, int(flags(command)["shutdown-timeout"])]
    assert json.loads(ended.stdout.splitlines()[-1]) == expected
