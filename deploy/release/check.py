"""`make release-check`: builds wheel and sdist, checks them, and installs the wheel into fresh environments.

    python deploy/release/check.py [--tree] [--extras server,gateway]

Builds the checked-out commit (with --tree: the files as they are now) twice and compares the builds byte by byte;
compares wheel and sdist with git's list of files; checks metadata and README (twine); installs the wheel with the
pinned versions, once as a client and once with the server's extras, and runs commands of both. Wheel and sdist are left
in dist/, and their SHA-256 is printed. Exits with 1 and a message if a check fails.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import distributions
from distributions import ROOT, Built

DIST = ROOT / "dist"
CONSTRAINTS = ROOT / "deploy" / "constraints.txt"
BASE = {"gradellm", "grpcio", "grpcio-status", "protobuf", "googleapis-common-protos", "typing_extensions"}
EXPLAIN = ("explain", "Once upon a time", "--max-new-tokens", "3", "--format", "json")


class FaultError(Exception):
    """A check failed; the message says which and why."""


def main() -> int:
    """Run all checks; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--tree", action="store_true", help="build the files as they are now, not the last commit")
    parser.add_argument("--extras", default="server,gateway", help="extras of the server environment; empty to skip it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gradellm-release-") as scratch:
        try:
            for step in _steps(Path(scratch), options.tree, options.extras):
                print(step, flush=True)
        except FaultError as fault:
            print(f"error: {fault}", file=sys.stderr)
            return 1
        except subprocess.CalledProcessError as failed:
            output = f"{failed.stdout or ''}\n{failed.stderr or ''}".strip()
            print(f"error: {' '.join(map(str, failed.cmd))} ended with {failed.returncode}:\n{output}", file=sys.stderr)
            return 1
    return 0


def _steps(scratch: Path, of_tree: bool, extras: str) -> Iterator[str]:
    tree, epoch = scratch / "tree", distributions.commit_time()
    tree.mkdir()
    if of_tree:
        files = distributions.known_files()
        distributions.copy_files(files, tree)
    else:
        files = distributions.committed_files("HEAD", tree)
    yield f"gradellm {distributions.version()}, {len(files)} files of {'the tree' if of_tree else 'the last commit'}"
    first, second = (_built(tree, scratch / name, epoch) for name in ("first", "second"))
    for once, again in ((first.wheel, second.wheel), (first.sdist, second.sdist)):
        if _sha256(once) != _sha256(again):
            raise FaultError(f"two builds of {once.name} differ")
    yield "two builds are equal byte by byte"
    direct = distributions.build_wheel(tree, scratch / "direct", epoch=epoch, isolated=False)
    if differing := distributions.same_contents(first.wheel, direct):
        raise FaultError(f"the wheel of the sdist differs from the wheel of the tree: {', '.join(differing[:5])}")
    faults = distributions.wheel_faults(first.wheel, files) + distributions.sdist_faults(first.sdist, files)
    if faults:
        raise FaultError("; ".join(faults[:10]))
    yield "wheel and sdist have the expected files, and the wheels of sdist and tree are equal"
    _run(sys.executable, "-m", "twine", "check", "--strict", str(first.wheel), str(first.sdist))
    yield "twine: metadata are well formed, and the README renders"
    with _environment(scratch / "client") as python:
        _install(python, str(first.wheel))
        _client(python, scratch)
    yield f"as a client, in a fresh environment: {', '.join(sorted(BASE))}; no torch, no numpy"
    if extras:
        with _environment(scratch / "host") as python:
            _install(python, f"{first.wheel}[{extras}]")
            _host(python, scratch)
        yield f"with [{extras}], in a fresh environment: explains, and starts the gateway's command"
    DIST.mkdir(exist_ok=True)
    for file in (first.wheel, first.sdist):
        shutil.copy2(file, DIST / file.name)
        yield f"{_sha256(file)}  dist/{file.name}"


def _built(tree: Path, target: Path, epoch: str) -> Built:
    # Without isolation the build uses the packages of deploy/release/requirements.txt.
    return distributions.build(tree, target, epoch=epoch, isolated=False)


@contextmanager
def _environment(path: Path) -> Iterator[str]:
    """The Python of a fresh environment."""
    venv.create(path, with_pip=True)
    try:
        yield str(path / "bin" / "python")
    finally:
        shutil.rmtree(path)


def _install(python: str, what: str) -> None:
    _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(CONSTRAINTS), what)
    _run(python, "-m", "pip", "check", "--disable-pip-version-check")


def _client(python: str, away: Path) -> None:
    listed = _run(python, "-m", "pip", "list", "--disable-pip-version-check", "--format", "freeze")
    installed = {line.split("==")[0] for line in listed.splitlines()} - {"pip", "setuptools"}
    _expect(installed == BASE, f"the base install has {sorted(installed)}")
    _says_version(python, away)
    loaded = _run(python, "-c", "import sys, gradellm; gradellm.Client; print(*sorted(sys.modules))", cwd=away).split()
    _expect(not {"torch", "numpy", "transformers"} & set(loaded), "import gradellm loads packages of the server")
    help_text = _run(python, "-m", "gradellm", "--help", cwd=away)
    _expect("explain" in help_text, "gradellm --help does not list its commands")


def _host(python: str, away: Path) -> None:
    _says_version(python, away)
    output = _run(python, "-m", "gradellm", *EXPLAIN, cwd=away)
    _expect('"scores"' in output, f"gradellm explain printed no scores: {output[:200]}")
    for command in ("serve", "gateway", "bench"):
        _run(python, "-m", "gradellm", command, "--help", cwd=away)


def _says_version(python: str, away: Path) -> None:
    printed = _run(str(Path(python).with_name("gradellm")), "--version", cwd=away).strip()
    _expect(printed == f"gradellm {distributions.version()}", f"gradellm --version prints {printed!r}")
    printed = _run(python, "-c", "import gradellm; print(gradellm.__version__)", cwd=away).strip()
    _expect(printed == distributions.version(), f"gradellm.__version__ is {printed!r}")


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise FaultError(otherwise)


def _run(*command: str, cwd: Path | None = None) -> str:
    """A command's standard output.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    return subprocess.run(  # noqa: S603  (fixed commands, without a shell)
        command, cwd=cwd, capture_output=True, text=True, check=True, timeout=1500
    ).stdout


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
