"""Builds the Dockerfile's stages in folders, each a root file system made by debootstrap and chroot."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import dockerfile as df
from commands import CleanRootError, output_of, report, run

PROJECT = Path(__file__).parents[2]

DOCKERFILE = PROJECT / "deploy" / "Dockerfile"

SUITE = "bookworm"

BASE = "base"

MACHINES_CERTIFICATES = Path("/opt/certificates-of-this-machine.pem")

PASSED_ON = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")

NO_CACHE = 'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";\n'


class Builder:
    """Builds stages, each once, in a root file system under a folder."""

    def __init__(
        self,
        folder: Path,
        arguments: Mapping[str, str],
        binds: Sequence[tuple[Path, Path]],
        variables: Mapping[str, str],
    ) -> None:
        """`arguments` are values of ARGs; `binds` and `variables` apply during RUN only and leave no trace."""
        self.file = df.read(DOCKERFILE)
        self._folder, self._binds, self._passed_on = folder, binds, variables
        declared = {df.argument(text)[0] for stage in self.file.stages.values() for text in stage.all("ARG")}
        if unknown := set(arguments) - declared - set(self.file.arguments):
            raise df.DockerfileError(f"--build-arg {', '.join(sorted(unknown))}: the Dockerfile has no such ARG")
        self._arguments = {**self.file.arguments, **arguments}
        self._build_args = dict(arguments)
        self.variables: dict[str, dict[str, str]] = {}  # ENV of each stage that has been built
        self.users: dict[str, str] = {}

    def base(self) -> Path:
        """A root with only Debian's essential packages, in place of the base image."""
        root = self._folder / BASE
        if not (root / "etc" / "os-release").is_file():
            report(f"debootstrap {SUITE}")
            run(["debootstrap", "--variant=minbase", SUITE, str(root), _mirror()])
            # As in Debian's own image: no package lists and no apt caches.
            (root / "etc/apt/apt.conf.d/no-cache").write_text(NO_CACHE)
            run(["chroot", str(root), "/bin/sh", "-c", "apt-get clean && rm -rf /var/lib/apt/lists/* /var/log/*.log"])
        return root

    def stage(self, name: str) -> Path:
        """A stage's root; builds it, and the stages it needs, if that has not been done."""
        root = self._folder / name
        if name in self.variables:
            return root
        stage = self.file.stages[name]
        parent = df.expand(stage.base, self._arguments)
        if parent in self.file.stages:
            source, environment = self.stage(parent), dict(self.variables[parent])
        else:  # an image
            source, environment = self.base(), {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        shutil.rmtree(root, ignore_errors=True)
        run(["cp", "--archive", "--reflink=auto", str(source), str(root)])
        shell = ["/bin/sh", "-c"]
        arguments: dict[str, str] = {}
        folder = "/"
        for ancestor in self._ancestors(name)[:-1]:
            shell = [df.words(text) for text in ancestor.all("SHELL")][-1] if ancestor.all("SHELL") else shell
            folder = ancestor.last("WORKDIR") if ancestor.all("WORKDIR") else folder
        for instruction in stage.instructions:
            report(f"{name}: {instruction.name} {instruction.text[:100]}")
            if instruction.name == "ARG":
                key, default = df.argument(instruction.text)
                arguments[key] = self._build_args.get(key, self._arguments.get(key, default))
            elif instruction.name == "ENV":
                environment |= df.pairs(df.expand(instruction.text, {**arguments, **environment}))
            elif instruction.name == "SHELL":
                shell = df.words(instruction.text)
            elif instruction.name == "WORKDIR":
                folder = instruction.text
                (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif instruction.name == "COPY":
                self._copy(instruction, root, folder)
            elif instruction.name == "RUN":
                if instruction.text.startswith("--"):
                    raise df.DockerfileError(f"line {instruction.line}: flags of RUN are not supported")
                self._in_root(root, [*shell, instruction.text], {**arguments, **environment}, folder)
            elif instruction.name == "USER":
                self.users[name] = instruction.text
        self.variables[name] = environment
        return root

    def _ancestors(self, name: str) -> list[df.Stage]:
        """The stages that a stage is based on, the earliest first, and the stage itself."""
        stage = self.file.stages[name]
        parent = df.expand(stage.base, self._arguments)
        return [*(self._ancestors(parent) if parent in self.file.stages else []), stage]

    def _copy(self, instruction: df.Instruction, root: Path, folder: str) -> None:
        *sources, target = instruction.text.split()
        origin = PROJECT
        if sources[0].startswith("--from="):
            origin = self.stage(sources.pop(0).removeprefix("--from="))
        elif sources[0].startswith("--"):
            raise df.DockerfileError(f"line {instruction.line}: {sources[0]} is not supported")
        destination = root / os.path.join(folder, target).lstrip("/")
        for source in sources:
            path = origin / source.lstrip("/")
            is_folder = path.is_dir()
            into = destination if is_folder or not target.endswith("/") else destination / path.name
            into.parent.mkdir(parents=True, exist_ok=True)
            if is_folder:
                is_ours = origin == PROJECT
                ignored = shutil.ignore_patterns("__pycache__", "*.pyc") if is_ours else None  # .dockerignore
                shutil.copytree(path, into, symlinks=True, dirs_exist_ok=True, ignore=ignored)
            else:
                shutil.copy2(path, into)

    def _in_root(self, root: Path, command: Sequence[str], variables: Mapping[str, str], folder: str) -> None:
        own = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name in PASSED_ON}
        environment = {"ROOT": str(root), "HOME": "/root", "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        environment |= {**own, **self._passed_on, **variables}
        with _bind_mounts(root, self._binds) as mounts:
            mounts = ["mount -t proc proc $ROOT/proc", "mount --rbind /dev $ROOT/dev", *mounts]
            script = "\n".join(["set -e", *mounts, 'exec chroot "$ROOT" "$@"'])
            inside = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', folder, *command]
            run(["unshare", "--mount", "--", "/bin/bash", "-c", script, "run", *inside], environment)


@contextmanager
def _bind_mounts(root: Path, binds: Sequence[tuple[Path, Path]]) -> Iterator[list[str]]:
    """Commands that bind-mount files and folders into a root; mount points are created here and removed afterwards."""
    created: list[Path] = []
    commands = []
    for source, target in [(Path("/etc/resolv.conf"), Path("/etc/resolv.conf")), *binds]:
        mount_point = root / str(target).lstrip("/")
        missing = [folder for folder in [*reversed(mount_point.parents), mount_point] if not folder.exists()]
        mount_point.parent.mkdir(parents=True, exist_ok=True)
        mount_point.mkdir(exist_ok=True) if source.is_dir() else mount_point.touch()
        created += missing
        commands.append(f"mount --bind -o ro {shlex.quote(str(source))} {shlex.quote(str(mount_point))}")
    try:
        yield commands
    finally:
        for mount_point in reversed(created):
            if mount_point.is_dir():
                with suppress(OSError):  # not empty by now
                    mount_point.rmdir()
            else:
                mount_point.unlink()


def pip_settings() -> tuple[list[tuple[Path, Path]], dict[str, str]]:
    """Bind mounts and variables with which pip in RUN uses this machine's pip configuration."""
    pip = [sys.executable, "-m", "pip", "config"]
    files = re.findall(r"^\s*(/\S+), exists: True$", output_of([*pip, "debug"]), re.MULTILINE)
    values = dict(line.partition("=")[::2] for line in output_of([*pip, "list"]).splitlines() if "=" in line)
    paths_named = []
    for name, value in values.items():
        for word in re.split(r"\\n|\s+", value.strip("'")):
            path = word.removeprefix("file://")
            # An index links to files in its folder.
            paths_named.append(os.path.dirname(path.rstrip("/")) if name.endswith("index-url") else path)
    paths = {Path(name) for name in [*files, *paths_named] if name.startswith("/") and Path(name).exists()}
    certificates = {Path(value.strip("'")) for name, value in values.items() if name.endswith(".cert")}
    binds = [(path, path) for path in sorted(paths - certificates)]
    variables = {}
    for path in sorted(certificates & paths)[:1]:  # under another name: a Debian package owns the usual one
        binds.append((path, MACHINES_CERTIFICATES))
        variables["PIP_CERT"] = str(MACHINES_CERTIFICATES)
    return binds, variables


def _mirror() -> str:
    """The Debian mirror that this machine's apt uses."""
    listing = output_of(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(SUITE)", "Created-By: Packages"]
    )
    for line in listing.splitlines():
        uri, *suites = line.split()
        if SUITE in suites:
            return uri
    raise CleanRootError(f"apt has no mirror of {SUITE} on this machine; run apt-get update")
