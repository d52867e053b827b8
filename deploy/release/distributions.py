"""Wheel and sdist of a tree, and what must be true of them before they are released.

Everything is checked against the list of files that git knows, so that nothing is in a wheel because it lay about, and
nothing is missing because a pattern forgot it.
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
# A wheel's top folders, and where their files lie in the tree; pyproject.toml says the same to the build.
PACKAGES = {
    "gradellm": "client/gradellm",
    "gradellm_engine": "gradellm_engine",
    "gradellm_server": "server/gradellm_server",
    "gradellm_gateway": "server/gradellm_gateway",
    "gradellm_ray": "server/gradellm_ray",
    "gradellm_bench": "server/gradellm_bench",
}
# What a wheel is useless without: it must be in the tree, and the tree is what is compared.
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
MOST_BYTES = 5_000_000  # of a wheel: the demo model takes most of it
SDIST_EXTRA = {"PKG-INFO", ".gitignore", "pyproject.toml"}  # what hatchling adds by itself


@dataclass(frozen=True)
class Built:
    """A build.

    Attributes:
        wheel: made of the sdist, as installers make it.
        sdist: made of the tree.
    """

    wheel: Path
    sdist: Path


def version() -> str:
    """The version, from the one place that holds it."""
    text = (ROOT / "client" / "gradellm" / "_version.py").read_text()
    return text.split('__version__ = "')[1].split('"')[0]


def known_files(root: Path = ROOT) -> list[str]:
    """Files that git knows or would take, as they are in the tree now."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],  # noqa: S607  (whichever git is there)
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return sorted({name for name in listed.stdout.splitlines() if (root / name).is_file()})


def committed_files(commit: str, target: Path) -> list[str]:
    """Put a commit's files into `target`; their names."""
    archive = subprocess.run(  # noqa: S603  (git, without a shell)
        ["git", "archive", "--format=tar", commit],  # noqa: S607
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    subprocess.run(["tar", "-x", "-C", str(target)], input=archive.stdout, check=True)  # noqa: S603, S607
    return sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())


def copy_files(names: Iterable[str], target: Path) -> None:
    """Put files of the tree as it is now into `target`."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)


def commit_time(commit: str = "HEAD") -> str:
    """When a commit was made: the time that a reproducible build gives its files."""
    told = subprocess.run(  # noqa: S603  (git, without a shell)
        ["git", "log", "-1", "--format=%ct", commit],  # noqa: S607
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return told.stdout.strip()


def build(tree: Path, target: Path, *, epoch: str, python: str = sys.executable, isolated: bool = True) -> Built:
    """Make the sdist of a tree and the wheel of the sdist; `python` has `build`.

    Raises:
        subprocess.CalledProcessError: where it does not build.
    """
    _build(tree, target, (), epoch, python, isolated)
    (wheel,), (sdist,) = target.glob("*.whl"), target.glob("*.tar.gz")
    return Built(wheel, sdist)


def build_wheel(tree: Path, target: Path, *, epoch: str, python: str = sys.executable, isolated: bool = True) -> Path:
    """Make a wheel of the tree itself."""
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
    """What is wrong with a wheel, in words; nothing where all is well.

    It must hold every file of the packages, and nothing else but its own metadata.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        metadata = next((name for name in names if name.endswith(".dist-info/METADATA")), None)
        told = archive.read(metadata).decode() if metadata else ""
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
    if f"\nVersion: {version()}\n" not in told:
        faults.append(f"the wheel's metadata does not say Version: {version()}, which _version.py does")
    if "\nLicense-Expression: Apache-2.0\n" not in told:
        faults.append("the wheel's metadata does not say License-Expression: Apache-2.0")
    if wheel.stat().st_size > MOST_BYTES:
        faults.append(f"the wheel has {wheel.stat().st_size:,} bytes, and may have {MOST_BYTES:,}")
    return faults


def sdist_faults(sdist: Path, tree_files: Sequence[str]) -> list[str]:
    """What is wrong with an sdist: it must hold only files of the tree, and all that tests and a build need."""
    with tarfile.open(sdist) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
    names = {member.name.split("/", 1)[1] for member in members}
    needed_folders = ("client/", "gradellm_engine/", "server/", "proto/", "tests/", "deploy/", "docs/")
    wanted = {name for name in tree_files if name.startswith(needed_folders)} | {"LICENSE", "README.md", "Makefile"}
    faults = [f"{name} is not in the sdist" for name in sorted(wanted - names)]
    faults += [f"{name} does not belong in the sdist" for name in sorted(names - set(tree_files) - SDIST_EXTRA)]
    faults += [f"{member.name} is owned by {member.uid}, not by 0" for member in members if member.uid][:1]
    return faults


def same_contents(one: Path, other: Path) -> list[str]:
    """Names whose contents differ between two wheels."""
    with zipfile.ZipFile(one) as first, zipfile.ZipFile(other) as second:
        names = sorted({*first.namelist(), *second.namelist()})
        return [name for name in names if _content(first, name) != _content(second, name)]


def _content(archive: zipfile.ZipFile, name: str) -> bytes | None:
    return archive.read(name) if name in archive.namelist() else None
