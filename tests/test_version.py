"""The version is defined in one file; every other mention of a version follows it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from packaging.version import Version

import gradellm
from gradellm import Client
from gradellm_engine import Engine
from gradellm_engine.demo_model import CHECKPOINT
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer

PROJECT = Path(__file__).parents[1]
SOURCES = ("client", "server", "gradellm_engine", "deploy", "proto", "docs", "pyproject.toml", "Makefile", "README.md")
# In deploy/, versions stand where a tool reads them: tests/deploy and the tests of images below compare them.
COMPARED = (
    "deploy/README.md",
    "client/gradellm/_version.py",
    "deploy/Dockerfile",
    "deploy/compose.yaml",
    "deploy/compose.gpu.yaml",
    "deploy/constraints.txt",
    "deploy/kubernetes/",
)


def test_the_version_is_a_release_number() -> None:
    version = Version(gradellm.__version__)
    assert str(version) == gradellm.__version__
    assert len(version.release) == 3
    assert version.local is None


def test_the_build_reads_the_version_file() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["version"]["path"] == "client/gradellm/_version.py"
    assert "version" in project["project"]["dynamic"]
    assert "version" not in project["project"]


def test_the_changelog_begins_with_the_next_or_this_version() -> None:
    """Before a release its head is "Unreleased"; from then on the newest number, with its date, is this one."""
    heads = re.findall(r"^## (.+)$", (PROJECT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [head for head in heads if head != "Unreleased"]
    assert heads[0] == "Unreleased" or heads[0].startswith(f"{gradellm.__version__} (")
    for head in released:
        assert re.fullmatch(r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)? \(\d{4}-\d\d-\d\d\)", head), head
    if released:
        assert Version(released[0].split()[0]) <= Version(gradellm.__version__)


def test_no_other_file_names_it() -> None:
    named = gradellm.__version__
    listed = subprocess.run(
        ["git", "grep", "--files-with-matches", "--fixed-strings", "--word-regexp", named, "--", *SOURCES],
        cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode > 1:
        pytest.skip("this is no git checkout")
    # Records of what a version did keep its number: results, and provenance in them.
    records = re.compile(r"\.(json|jsonl|csv|svg)$|^docs/faithfulness/|^docs/.*\.html$")
    strangers = [
        name for name in listed.stdout.splitlines() if not name.startswith(COMPARED) and not records.search(name)
    ]
    assert strangers == []


@pytest.mark.parametrize("page", ["README.md", "deploy/README.md", "docs/upgrading.md"])
def test_pages_name_images_of_it(page: str) -> None:
    path = PROJECT / page
    tags = re.findall(r"\bgradellm(?:-client)?:(\d+\.\d+\.\d+)", path.read_text() if path.exists() else "")
    numbers = re.findall(r"\b(?:VERSION|newTag|tag)[=:] ?(\d+\.\d+\.\d+)", path.read_text() if path.exists() else "")
    assert {*tags, *numbers} <= {gradellm.__version__}


def test_images_are_labelled_with_it() -> None:
    text = (PROJECT / "deploy" / "Dockerfile").read_text()
    assert set(re.findall(r"^ARG VERSION=(.*)$", text, re.MULTILINE)) == {gradellm.__version__}
    stages = text.count("LABEL org.opencontainers.image.title")
    assert stages
    for label in ("version", "revision", "source", "licenses"):
        assert text.count(f"org.opencontainers.image.{label}=") == stages, label


@pytest.mark.parametrize("module", ["gradellm", "gradellm_server", "gradellm_server.auth.tokens"])
def test_commands_print_the_version(module: str) -> None:
    result = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"gradellm {gradellm.__version__}\n"


def test_the_server_reports_the_version() -> None:
    """To clients, in the provenance of an explanation and in what the server tells of itself."""
    server = RunningServer(Engine.load(str(CHECKPOINT)), ServerSettings(listen="127.0.0.1:0"))
    try:
        with Client(server.address) as client:
            assert client.server_info().versions["gradellm"] == gradellm.__version__
            explanation = client.explain("Once upon a time", max_new_tokens=2)
            assert explanation.provenance.versions["gradellm"] == gradellm.__version__
    finally:
        server.close()


def test_clients_send_the_version() -> None:
    """As the beginning of the user agent, which proxies and servers log."""
    versions: list[str] = []

    class Listening(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> None:
            versions.extend(str(value) for key, value in details.invocation_metadata or () if key == "user-agent")

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Listening()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Client(f"127.0.0.1:{port}", retry=None) as client, pytest.raises(gradellm.GradellmError):
            client.server_info()
    finally:
        server.stop(None)
    assert versions
    assert versions[0].startswith(f"gradellm/{gradellm.__version__} grpc-python/")
