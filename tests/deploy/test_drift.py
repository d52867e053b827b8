"""deploy/ agrees with the code: flags, ports, probes, grace periods, metric names, versions."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health
from torch.distributed.run import get_args_parser as torchrun_parser

from deploy.manifests import (
    BUILDS,
    DEPLOY,
    PROJECT,
    Resource,
    built,
    containers,
    labels,
    of_kind,
    seconds,
)
from gradellm import __version__
from gradellm.cli import _parser as cli_parser
from gradellm_engine import DEFAULT_CHUNK_SIZE
from gradellm_gateway.__main__ import _parser as gateway_parser
from gradellm_server.auth.tokens import parser as token_parser
from gradellm_server.cli import health_address, metrics_address
from gradellm_server.cli import parser as server_parser
from gradellm_server.health import LIVE, READY
from gradellm_server.rpc.rpcs import SERVICE_NAME
from gradellm_server.server import ABORT_SECONDS
from gradellm_server.settings import ServerSettings, split_address
from server.observability.test_monitoring import NAME, sample_names

yaml = pytest.importorskip("yaml")
MARGIN_SECONDS = 5.0  # for the engine thread and Python to end, in addition to the timeouts in the code
GATEWAY_GRACE = re.compile(r"timeout_graceful_shutdown=(\d+)")


def server_options(arguments: list[str]) -> argparse.Namespace:
    """The server's options, by its own parser and checks, which load nothing."""
    options = server_parser().parse_args(arguments)
    ServerSettings(
        listen=options.listen,
        insecure=options.insecure,
        max_queued=options.max_queued,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        tls_client_ca=options.tls_client_ca,
        tokens=options.tokens,
        metrics_listen=metrics_address(options),
        health_listen=health_address(options.health_port),
    )
    return options


def torchrun_options(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """torchrun's own options, and what it passes on; Kubernetes' $(NAME) stand for numbers and a host."""
    filled = [re.sub(r"\$\(\w+\)", "1", argument) for argument in arguments]
    options = torchrun_parser().parse_args(filled)
    return options, options.training_script_args


def servers(name: str) -> list[tuple[Resource, Resource, argparse.Namespace]]:
    """Pods, containers and options of the servers in a build, ranks that only step along among them."""
    found = []
    for pod, container in containers(built(name)):
        if container.get("command") == ["torchrun"]:
            torchrun, passed_on = torchrun_options(container["args"])
            assert torchrun.module
            assert torchrun.training_script == "gradellm_server"
            found.append((pod, container, server_options(passed_on)))
        elif container.get("args", [""])[0] == "serve":
            found.append((pod, container, server_options(container["args"][1:])))
    return found


@pytest.mark.parametrize("name", BUILDS)
def test_every_command_is_understood(name: str) -> None:
    for _, container in containers(built(name)):
        arguments = [re.sub(r"\$\(\w+\)", "1", argument) for argument in container.get("args", [])]
        if container.get("command") == ["torchrun"]:
            continue  # by `servers`
        if container.get("command") == ["hf"]:
            hub_download(arguments)
            continue
        if container.get("command") == ["vllm", "serve"]:
            continue  # tests/deploy/test_vllm.py
        assert "command" not in container, "the image's entrypoint is gradellm"
        understood(arguments)
    servers(name)


def hub_download(arguments: list[str]) -> None:
    """Whether the hub's own program, as it is pinned, has this command and these flags."""
    import inspect

    from huggingface_hub.cli.download import download

    assert arguments[0] == "download"
    parameters = set(inspect.signature(download).parameters)
    flags = {
        argument.removeprefix("--").partition("=")[0].replace("-", "_")
        for argument in arguments
        if argument.startswith("--")
    }
    assert flags
    assert flags <= parameters


def understood(arguments: list[str]) -> None:
    """Raise SystemExit where `gradellm` would not take these arguments."""
    kind, *rest = arguments
    if kind == "serve":
        server_options(rest)
    elif kind == "token":
        token_parser().parse_args(rest)
    elif kind == "gateway":
        gateway_parser().parse_args(rest)
    else:
        cli_parser().parse_args(arguments)


@pytest.mark.parametrize("name", BUILDS)
def test_probes_use_the_health_ports_and_service_names(name: str) -> None:
    for pod, container, options in servers(name):
        if labels(pod)["app.kubernetes.io/component"] == "rank":
            continue  # it has no listening port
        host, port = split_address(str(health_address(options.health_port)))
        assert host == "0.0.0.0", "the kubelet asks from outside the pod"
        assert {container[probe]["grpc"]["port"] for probe in PROBES} == {port}
        assert {probe: container[probe]["grpc"]["service"] for probe in PROBES} == PROBES
        ports = {one["name"]: one["containerPort"] for one in container["ports"]}
        assert ports["health"] == port
        assert ports["grpc"] == split_address(options.listen)[1]
        assert ports["metrics"] == split_address(options.metrics_listen)[1]
        # Slower than the server looks at its engine, and patient with one that is busy.
        for probe in PROBES:
            assert container[probe]["timeoutSeconds"] >= 5
        startup = container["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] >= 1800


PROBES = {"startupProbe": READY, "readinessProbe": READY, "livenessProbe": LIVE}


@pytest.mark.parametrize("name", BUILDS)
def test_there_is_time_to_stop_in(name: str) -> None:
    resources = built(name)
    for pod, container, options in servers(name):
        sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        allowed = pod["spec"]["terminationGracePeriodSeconds"]
        if labels(pod)["app.kubernetes.io/component"] == "rank":
            (leader,) = [c for p, c, _ in servers(name) if labels(p)["app.kubernetes.io/component"] == "server"]
            assert sleep >= leader["lifecycle"]["preStop"]["sleep"]["seconds"] + options.grace_seconds
            assert allowed > sleep
            continue
        assert sleep >= 10, "the news that a pod ends travels for some seconds"
        assert allowed >= sleep + options.grace_seconds + ABORT_SECONDS + MARGIN_SECONDS
        if container.get("command") == ["torchrun"]:
            torchrun, _ = torchrun_options(container["args"])
            assert torchrun.shutdown_timeout >= options.grace_seconds + ABORT_SECONDS + MARGIN_SECONDS
            assert allowed >= sleep + torchrun.shutdown_timeout
    (grace,) = GATEWAY_GRACE.findall((PROJECT / "server" / "gradellm_gateway" / "__main__.py").read_text())
    for pod, container in containers(resources):
        if container.get("args", [""])[0] == "gateway":
            sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert pod["spec"]["terminationGracePeriodSeconds"] >= sleep + int(grace) + MARGIN_SECONDS


@pytest.mark.parametrize("name", BUILDS)
def test_images_are_of_this_version(name: str) -> None:
    for _, container in containers(built(name)):
        repository, _, tag = container["image"].rpartition(":")
        kinds = {"registry.example.org/gradellm": ("-cpu", "-cuda"), "registry.example.org/gradellm-client": ("",)}
        if container["name"] == "vllm":
            continue  # tests/deploy/test_vllm.py
        assert tag in [__version__ + kind for kind in kinds[repository]]


@pytest.mark.parametrize("name", ["keda", "vllm"])
def test_scaling_asks_for_metrics_that_exist(name: str) -> None:
    (scaled,) = of_kind(built(f"overlays/{name}"), "ScaledObject")
    options = servers(f"overlays/{name}")[0][2]
    triggers = {one["name"]: one["metadata"] for one in scaled["spec"]["triggers"]}
    for trigger in triggers.values():
        used = set(NAME.findall(trigger["query"]))
        assert used, trigger["query"]
        assert used <= sample_names()
        assert set(re.findall(r'namespace="([^"]*)"', trigger["query"])) == {scaled["metadata"]["namespace"]}
        assert trigger["query"].count("{") == len(NAME.findall(trigger["query"]))
    assert float(triggers["running"]["threshold"]) < options.max_running
    assert float(triggers["waiting"]["threshold"]) < options.max_queued
    if name == "vllm":
        assert float(triggers["followed"]["threshold"]) < options.max_followed
        assert float(triggers["pending"]["threshold"]) == DEFAULT_CHUNK_SIZE * options.max_followed
    else:
        assert set(triggers) == {"waiting", "running"}


def test_rules_and_board_are_those_of_the_monitoring_folder() -> None:
    generated = subprocess.run(
        [sys.executable, DEPLOY / "kubernetes" / "rules.py", "--check"], capture_output=True, text=True, check=False
    )
    assert generated.returncode == 0, generated.stderr
    resources = built("overlays/monitoring")
    (rule,) = of_kind(resources, "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((DEPLOY / "monitoring" / "alerts.yml").read_text())
    (board,) = of_kind(resources, "ConfigMap")
    assert json.loads(board["data"]["dashboard.json"]) == json.loads(
        (DEPLOY / "monitoring" / "dashboard.json").read_text()
    )


def test_routes_name_services_that_exist() -> None:
    (route,) = of_kind(built("overlays/gateway"), "GRPCRoute")
    named = [match["method"]["service"] for rule in route["spec"]["rules"] for match in rule["matches"]]
    assert named == [SERVICE_NAME, health.SERVICE_NAME]


# --- compose ----------------------------------------------------------------------------------------------------------


def compose(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml", "compose.vllm.yaml"])
def test_compose_files_match_the_specification(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((DEPLOY / "kubernetes" / "schemas" / "compose-spec.json").read_text())
    found = [f"{e.json_path}: {e.message}" for e in jsonschema.Draft7Validator(schema).iter_errors(compose(name))]
    assert found == []
    assert list(jsonschema.Draft7Validator(schema).iter_errors({"services": {"a": {"surprise": 1}}}))


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_composes_commands_are_understood_and_fit(name: str) -> None:
    services = compose(name)["services"]
    options = server_options(services["server"]["command"][1:])
    base = compose("compose.yaml")["services"]
    assert seconds(base["server"]["stop_grace_period"]) >= options.grace_seconds + ABORT_SECONDS + MARGIN_SECONDS
    assert options.health_port == "50052"  # where the image's HEALTHCHECK asks
    assert services["server"]["image"].partition(":")[2] in (f"{__version__}-cpu", f"{__version__}-cuda")
    for service in services.values():
        for mount in service.get("volumes", []):
            if isinstance(mount, str) and mount.startswith("./"):
                assert (DEPLOY / mount.split(":")[0]).is_file(), mount


def test_compose_publishes_listening_ports_on_loopback_only() -> None:
    services = compose("compose.yaml")["services"]
    published = {port for item in services.values() for port in item.get("ports", [])}
    assert all(port.startswith("127.0.0.1:") for port in published)
    server = server_options(services["server"]["command"][1:])
    gateway = gateway_parser().parse_args(services["gateway"]["command"][1:])
    prometheus = dict(item.lstrip("-").partition("=")[::2] for item in services["prometheus"]["command"])
    listening = [server.listen, gateway.listen, prometheus["web.listen-address"], "0.0.0.0:3000"]
    assert published == {f"127.0.0.1:{port}:{port}" for port in (split_address(item)[1] for item in listening)}
    assert gateway.target == f"server:{split_address(server.listen)[1]}"
    # Prometheus shares the server's network, and its configuration is the one of deploy/monitoring.
    assert services["prometheus"]["network_mode"] == "service:server"
    scraped = yaml.safe_load((DEPLOY / "monitoring" / "prometheus.yml").read_text())["scrape_configs"][0]
    assert scraped["static_configs"][0]["targets"] == [metrics_address(server)]
    (source,) = yaml.safe_load((DEPLOY / "monitoring" / "grafana" / "datasources.yml").read_text())["datasources"]
    assert source["url"] == f"http://server:{split_address(prometheus['web.listen-address'])[1]}"
    for name, item in services.items():
        assert item["read_only"] is True, name
        assert item["cap_drop"] == ["ALL"], name
        assert item["security_opt"] == ["no-new-privileges:true"], name


# --- the README's commands --------------------------------------------------------------------------------------------


def commands(page: Path) -> list[list[str]]:
    """What code blocks of a page run by `gradellm`; words in capitals stand for the reader's own."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("gradellm ")]


def test_the_readmes_commands_are_understood() -> None:
    found = commands(DEPLOY / "README.md")
    assert len(found) >= 3
    for arguments in found:
        plain = arguments[: arguments.index(">>")] if ">>" in arguments else arguments
        understood(plain)


def test_the_readmes_links_lead_somewhere() -> None:
    text = (DEPLOY / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (DEPLOY / target).exists(), target


def module(path: Path) -> Any:
    """A script of deploy/, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = loaded
    spec.loader.exec_module(loaded)
    return loaded
