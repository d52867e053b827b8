"""Builds wheel and sdist of a source tree, and checks them before a release.

They are compared with git's list of files, so that a wheel has neither stray files nor lacks files that a pattern in
pyproject.toml misses.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Packages of the wheel, and their folders in the tree; the same as in pyproject.toml.
PACKAGES = {
    "gradellm": "client/gradellm",
    "gradellm_engine": "gradellm_engine",
    "gradellm_server": "server/gradellm_server",
    "gradellm_gateway": "server/gradellm_gateway",
    "gradellm_ray": "server/gradellm_ray",
    "gradellm_bench": "server/gradellm_bench",
}
# Required files of the wheel. The comparison with the tree cannot notice that the tree lacks one.
NEEDED = (
    "gradellm/py.typed",
    "gradellm/explanation/assets/explanation.js",
    "gradellm/v1/explainer_pb2.py",
    "gradellm/v1/explainer_pb2.pyi",
    "gradellm/v1/explainer_pb2_grpc.py",
    "gradellm_engine/py.typed",
    "gradellm_engine/demo_model/checkpoint/model.safetensors",
    "gradellm_engine/demo_model/checkpoint/tokenizer.json",
    "gradellm_bench/__main__.py",
    "gradellm_gateway/page/chat.js",
    "gradellm_gateway/page/index.html",
    "gradellm_ray/__main__.py",
    "gradellm_server/__main__.py",
    "gradellm_server/py.typed",
)
MAX_BYTES = 5_000_000  # of a wheel, most of which is the demo model
SDIST_EXTRA = {"PKG-INFO", ".gitignore", "pyproject.toml"}  # added by hatchling


@dataclass(frozen=True)
class Built:
    """Distributions of a tree.

    Attributes:
        wheel: built from the sdist, as installers do.
        sdist: built from the tree.
    """

    wheel: Path
    sdist: Path


def version() -> str:
    """The version, from _version.py."""
    text = (ROOT / "client" / "gradellm" / "_version.py").read_text()
    return text.split('__version__ = "')[1].split('"')[0]


def known_files(root: Path = ROOT) -> list[str]:
    """Tracked files and untracked files that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],  # noqa: S607  (git of the PATH)
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return sorted({name for name in listed.stdout.splitlines() if (root / name).is_file()})


def committed_files(commit: str, target: Path) -> list[str]:
    """Extract a commit's files into `target`; their names."""
    archive = subprocess.run(  # noqa: S603  (git, without a shell)
        ["git", "archive", "--format=tar", commit],  # noqa: S607
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    subprocess.run(["tar", "-x", "-C", str(target)], input=archive.stdout, check=True)  # noqa: S603, S607
    return sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())


def copy_files(names: Iterable[str], target: Path) -> None:
    """Copy files of the working tree into `target`."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)


def commit_time(commit: str = "HEAD") -> str:
    """A commit's time in seconds: SOURCE_DATE_EPOCH of a reproducible build."""
    listing = subprocess.run(  # noqa: S603  (git, without a shell)
        ["git", "log", "-1", "--format=%ct", commit],  # noqa: S607
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return listing.stdout.strip()


def build(tree: Path, target: Path, *, epoch: str, python: str = sys.executable, isolated: bool = True) -> Built:
    """Build the sdist of a tree and the wheel of the sdist; `python` must have the package `build`.

    Raises:
        subprocess.CalledProcessError: if the build fails.
    """
    _build(tree, target, (), epoch, python, isolated)
    (wheel,), (sdist,) = target.glob("*.whl"), target.glob("*.tar.gz")
    return Built(wheel, sdist)


def build_wheel(tree: Path, target: Path, *, epoch: str, python: str = sys.executable, isolated: bool = True) -> Path:
    """Build a wheel of the tree itself."""
    _build(tree, target, ("--wheel",), epoch, python, isolated)
    (wheel,) = target.glob("*.whl")
    return wheel


def _build(tree: Path, target: Path, kinds: Sequence[str], epoch: str, python: str, isolated: bool) -> None:
    options = [] if isolated else ["--no-isolation"]
    subprocess.run(  # noqa: S603  (the Python that was given, and arguments without a shell)
        [python, "-m", "build", *kinds, *options, "--outdir", str(target), str(tree)],
        env={**os.environ, "SOURCE_DATE_EPOCH": epoch}, check=True, capture_output=True, text=True,
    )  # fmt: skip


def wheel_faults(wheel: Path, tree_files: Sequence[str]) -> list[str]:
    """Faults of a wheel, as text. It must have every file of the packages, and nothing else but its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        metadata = next((name for name in names if name.endswith(".dist-info/METADATA")), None)
        metadata_text = archive.read(metadata).decode() if metadata else ""
    wanted = {
        f"{package}/{name.removeprefix(folder + '/')}"
        for package, folder in PACKAGES.items()
        for name in tree_files
        if name.startswith(folder + "/")
    }
    own = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    faults = [f"{name} is not in the wheel" for name in sorted({*wanted, *NEEDED} - names)]
    faults += [f"{name} does not belong in the wheel" for name in sorted(names - own - wanted)]
    if not any(name.endswith("/licenses/LICENSE") for name in own):
        faults.append("the wheel has no licence text")
    if f"\nVersion: {version()}\n" not in metadata_text:
        faults.append(f"the wheel's metadata lacks Version: {version()}, the version in _version.py")
    if "\nLicense-Expression: Apache-2.0\n" not in metadata_text:
        faults.append("the wheel's metadata lacks License-Expression: Apache-2.0")
    if wheel.stat().st_size > MAX_BYTES:
        faults.append(f"the wheel has {wheel.stat().st_size:,} bytes; the limit is {MAX_BYTES:,}")
    return faults


def sdist_faults(sdist: Path, tree_files: Sequence[str]) -> list[str]:
    """Faults of an sdist, as text. It must have all files that tests and a build need, and only files of the tree."""
    with tarfile.open(sdist) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
    names = {member.name.split("/", 1)[1] for member in members}
    needed_folders = ("client/", "gradellm_engine/", "server/", "proto/", "tests/", "deploy/", "docs/")
    wanted = {name for name in tree_files if name.startswith(needed_folders)} | {"LICENSE", "README.md", "Makefile"}
    faults = [f"{name} is not in the sdist" for name in sorted(wanted - names)]
    faults += [f"{name} does not belong in the sdist" for name in sorted(names - set(tree_files) - SDIST_EXTRA)]
    faults += [f"{member.name} is owned by {member.uid}, not by 0" for member in members if member.uid][:1]
    return faults


def same_contents(left: Path, right: Path) -> list[str]:
    """Names of files that differ between two wheels."""
    with zipfile.ZipFile(left) as first, zipfile.ZipFile(right) as second:
        names = sorted({*first.namelist(), *second.namelist()})
        return [name for name in names if _content(first, name) != _content(second, name)]


def _content(archive: zipfile.ZipFile, name: str) -> bytes | None:
    return archive.read(name) if name in archive.namelist() else None
