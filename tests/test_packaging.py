"""Wheel, sdist, and the base install of an SDK user: small, light, without the server's packages."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PROJECT = Path(__file__).parents[1]

LOOK = """
import json, sys
import gradellm
gradellm.Client, gradellm.AsyncClient  # names are loaded when they are first used
print(json.dumps(sorted(name for name in sys.modules if "." not in name)))
"""


def script(name: str) -> ModuleType:
    """A script of deploy/release, which is no package."""
    folder = str(PROJECT / "deploy" / "release")
    spec = importlib.util.spec_from_file_location(name, f"{folder}/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, folder)
    try:
        sys.modules[name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


distributions: Any = script("distributions")
sbom: Any = script("sbom")


@pytest.fixture(scope="module")
def files() -> list[str]:
    try:
        names: list[str] = distributions.known_files()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout, whose files would be what a wheel must hold")
    return names


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, files: list[str]) -> Any:
    tree, target = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("built")
    distributions.copy_files(files, tree)
    return distributions.build(tree, target, epoch="1700000000")


@pytest.mark.slow
def test_the_base_install_is_light(tmp_path: Path, built: Any) -> None:
    venv.create(tmp_path / "base", with_pip=True)
    python = tmp_path / "base" / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", str(built.wheel)], check=True)
    listed = subprocess.run([*pip, "list", "--format", "json"], check=True, capture_output=True, text=True).stdout
    installed = {package["name"] for package in json.loads(listed)} - {"pip", "setuptools"}
    assert installed == {
        "gradellm",
        "grpcio",
        "grpcio-status",
        "protobuf",
        "googleapis-common-protos",
        "typing_extensions",
    }
    loaded = subprocess.run([python, "-c", LOOK], check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert not {"torch", "numpy", "transformers"} & set(json.loads(loaded))
    served = subprocess.run(
        [python, "-m", "gradellm", "serve"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert served.returncode != 0
    assert "pip install 'gradellm[server]'" in served.stderr


@pytest.mark.slow
def test_contents_of_wheel_and_sdist(built: Any, files: list[str]) -> None:
    assert distributions.wheel_faults(built.wheel, files) == []
    assert distributions.sdist_faults(built.sdist, files) == []


@pytest.mark.slow
def test_builds_repeat_and_agree(tmp_path: Path, files: list[str], built: Any) -> None:
    """The same files and time give the same bytes; the wheel of the tree is that of the sdist."""
    tree = tmp_path / "tree"
    distributions.copy_files(files, tree)
    again = distributions.build(tree, tmp_path / "again", epoch="1700000000")
    assert again.wheel.read_bytes() == built.wheel.read_bytes()
    assert again.sdist.read_bytes() == built.sdist.read_bytes()
    direct = distributions.build_wheel(tree, tmp_path / "direct", epoch="1700000000")
    assert distributions.same_contents(built.wheel, direct) == []


# --- what the checks find ---------------------------------------------------------------------------------------------

INFO = "gradellm-0.dist-info"


def wheel_of(path: Path, names: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in names.items():
            archive.writestr(name, text)
    return path


def whole_wheel() -> dict[str, str]:
    message = f"Name: gradellm\nVersion: {distributions.version()}\nLicense-Expression: Apache-2.0\n"
    return {
        **dict.fromkeys(distributions.NEEDED, ""),
        f"{INFO}/METADATA": message,
        f"{INFO}/licenses/LICENSE": "Apache",
    }


def tree_of(names: dict[str, str]) -> list[str]:
    folders = distributions.PACKAGES
    return [f"{folders[name.split('/')[0]]}/{name.split('/', 1)[1]}" for name in names if name.split("/")[0] in folders]


Change = Callable[[dict[str, str]], None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: None, None),
        (lambda names: names.pop("gradellm/py.typed"), "gradellm/py.typed is not in the wheel"),
        (lambda names: names.update({"tests/test_a.py": ""}), "tests/test_a.py does not belong"),
        (lambda names: names.update({"gradellm/__pycache__/a.pyc": ""}), "a.pyc does not belong"),
        (lambda names: names.pop(f"{INFO}/licenses/LICENSE"), "no licence text"),
        (lambda names: names.update({f"{INFO}/METADATA": "Version: 9"}), "lacks Version"),
    ],
)
def test_faults_of_wheels_are_reported(tmp_path: Path, change: Change, message: str | None) -> None:
    names = whole_wheel()
    tree = tree_of(names)
    change(names)
    faults = distributions.wheel_faults(wheel_of(tmp_path / "a.whl", names), tree)
    if message is None:
        assert faults == []
    else:
        assert any(message in fault for fault in faults), faults


def test_faults_of_sdists_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("LICENSE", "README.md", "Makefile", "secret.key", "tests/a.py"):
            archive.addfile(tarfile.TarInfo(f"gradellm-0/{name}"), io.BytesIO())
    faults = distributions.sdist_faults(path, ["LICENSE", "README.md", "Makefile", "tests/a.py", "proto/a.proto"])
    assert faults == ["proto/a.proto is not in the sdist", "secret.key does not belong in the sdist"]


# --- the bill of materials --------------------------------------------------------------------------------------------


def component(**changes: Any) -> dict[str, Any]:
    fields = {"name": "a_b", "version": "1.0", "purl": "pkg:pypi/a-b@1.0", "licenses": [{"license": {"id": "MIT"}}]}
    return {**fields, **changes}


@pytest.mark.parametrize(
    ("bill", "message"),
    [
        (component(), None),
        (component(version="1.0+cpu"), None),  # a build of the pinned version
        (component(licenses=[{"expression": "MIT OR Apache-2.0"}]), None),
        (component(version="1.1"), "a-b is 1.1, but deploy/constraints.txt pins 1.0"),
        (component(name="c"), "c 1.0 is not pinned"),
        (component(licenses=[]), "a-b 1.0 has no licence"),
        (component(purl=""), "a-b has no version or no package URL"),
    ],
)
def test_faults_of_a_bill_of_materials_are_reported(bill: dict[str, Any], message: str | None) -> None:
    faults = sbom.faults_of({"components": [bill]}, sbom.pinned("# pins\nA.b==1.0 ; python_version > '3'\n"))
    if message is None:
        assert faults == []
    else:
        assert any(message in fault for fault in faults), faults


def test_licences_are_listed_by_name() -> None:
    document = {"components": [component(), component(name="d", licenses=[{"license": {"name": "own words"}}])]}
    assert sbom.licence_table(document) == "MIT: a_b 1.0\nown words: d 1.0"


@pytest.mark.parametrize("image", ["server", "client"])
def test_bills_of_materials_cover_the_dockerfiles_extras(image: str) -> None:
    extras = sbom.image_extras(image, (PROJECT / "deploy" / "Dockerfile").read_text()).split(",")
    project = (PROJECT / "pyproject.toml").read_text()
    assert extras
    for extra in extras:
        assert f"\n{extra} = [" in project
    assert "dev" not in extras


def test_a_dockerfile_without_extras_is_an_error() -> None:
    with pytest.raises(ValueError, match="ARG EXTRAS"):
        sbom.image_extras("server", "FROM scratch\n")
