"""`make release-check`: builds what would be released, and installs it where nothing else is.

    python deploy/release/check.py [--tree] [--extras server,gateway]

Builds the commit that is checked out (or, with --tree, the files as they are now) twice and compares byte by byte;
compares wheel and sdist with the files that git knows; checks their metadata and that the README renders (twine);
installs the wheel by the pinned versions into fresh environments, once as a client and once with what hosts a model,
and asks both what they are for. Wheel and sdist are left in dist/ with their SHA-256. Ends with 1 where something is
wrong, and says what.
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
EXPLAINED = ("explain", "Once upon a time", "--max-new-tokens", "3", "--format", "json")


class FaultError(Exception):
    """What is wrong, in words."""


def main() -> int:
    """Check; the exit status."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    made.add_argument("--tree", action="store_true", help="the files as they are now, rather than the last commit's")
    made.add_argument("--extras", default="server,gateway", help="what hosts a model; empty to leave that part out")
    options = made.parse_args()
    with tempfile.TemporaryDirectory(prefix="gradellm-release-") as scratch:
        try:
            for step in _steps(Path(scratch), options.tree, options.extras):
                print(step, flush=True)
        except FaultError as fault:
            print(f"error: {fault}", file=sys.stderr)
            return 1
        except subprocess.CalledProcessError as failed:
            told = f"{failed.stdout or ''}\n{failed.stderr or ''}".strip()
            print(f"error: {' '.join(map(str, failed.cmd))} ended with {failed.returncode}:\n{told}", file=sys.stderr)
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
    for one, other in ((first.wheel, second.wheel), (first.sdist, second.sdist)):
        if _sha256(one) != _sha256(other):
            raise FaultError(f"{one.name} is not the same in two builds")
    yield "two builds: the same, byte by byte"
    direct = distributions.build_wheel(tree, scratch / "direct", epoch=epoch, isolated=False)
    if differing := distributions.same_contents(first.wheel, direct):
        raise FaultError(f"the wheel made of the sdist is not that of the tree: {', '.join(differing[:5])}")
    faults = distributions.wheel_faults(first.wheel, files) + distributions.sdist_faults(first.sdist, files)
    if faults:
        raise FaultError("; ".join(faults[:10]))
    yield "wheel and sdist hold what they should, and the wheel of the sdist is that of the tree"
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
    # Without isolation: the build's own packages are those of deploy/release/requirements.txt, and no others.
    return distributions.build(tree, target, epoch=epoch, isolated=False)


@contextmanager
def _environment(path: Path) -> Iterator[str]:
    """A Python of an environment that holds nothing."""
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
    _expect(installed == BASE, f"the base install holds {sorted(installed)}")
    _says_version(python, away)
    loaded = _run(python, "-c", "import sys, gradellm; gradellm.Client; print(*sorted(sys.modules))", cwd=away).split()
    _expect(not {"torch", "numpy", "transformers"} & set(loaded), "import gradellm loads what hosts a model")
    helped = _run(python, "-m", "gradellm", "--help", cwd=away)
    _expect("explain" in helped, "gradellm --help does not tell its commands")


def _host(python: str, away: Path) -> None:
    _says_version(python, away)
    told = _run(python, "-m", "gradellm", *EXPLAINED, cwd=away)
    _expect('"scores"' in told, f"gradellm explain told no scores: {told[:200]}")
    for command in ("serve", "gateway", "bench"):
        _run(python, "-m", "gradellm", command, "--help", cwd=away)


def _says_version(python: str, away: Path) -> None:
    told = _run(str(Path(python).with_name("gradellm")), "--version", cwd=away).strip()
    _expect(told == f"gradellm {distributions.version()}", f"gradellm --version says {told!r}")
    told = _run(python, "-c", "import gradellm; print(gradellm.__version__)", cwd=away).strip()
    _expect(told == distributions.version(), f"gradellm.__version__ is {told!r}")


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise FaultError(otherwise)


def _run(*command: str, cwd: Path | None = None) -> str:
    """What a command prints.

    Raises:
        subprocess.CalledProcessError: where it fails.
    """
    return subprocess.run(  # noqa: S603  (our own, without a shell)
        command, cwd=cwd, capture_output=True, text=True, check=True, timeout=1500
    ).stdout


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
