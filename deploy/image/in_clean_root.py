"""`make image-check`: the image's build and start without an engine, by deploy/Dockerfile's own instructions.

    python deploy/image/in_clean_root.py --build-arg TORCH_INDEX=

Debian's debootstrap makes a clean root in place of the base image. Each stage's instructions are then carried out, as
they stand in the Dockerfile, in a copy of its base's root. Both images are started as an engine would with --read-only,
--cap-drop ALL and --security-opt no-new-privileges: as the file's USER, on a tree that cannot be written, with tmpfs at
/tmp and /cache, in namespaces of their own (processes, mounts, messages, network). From outside, over that network's
loopback, an explanation is streamed, directly and through the gateway. What it took is printed as JSON.

Needs root, Linux, debootstrap, and some 8 GB of disk. Where packages come from is this machine's own affair. Variables
PIP_* and those of proxies are passed on to RUN; --bind PATH[:PATH] shows a file or folder of this machine inside,
read-only, there or under its own name, and leaves nothing of it; --pip-like-here does that with all that pip's
configuration names here: its files, folders with packages, and certificates. Debian's mirror is the one that apt uses.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dockerfile as df
import yaml

PROJECT = Path(__file__).parents[2]
DOCKERFILE = PROJECT / "deploy" / "Dockerfile"
SUITE = "bookworm"
BASE = "base"
WRITABLE = ("/tmp", "/cache")  # noqa: S108  (of the image)
MACHINES_CERTIFICATES = Path("/opt/certificates-of-this-machine.pem")
PASSED_ON = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
NO_CACHE = 'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";\n'
READY_SECONDS = 180.0
STOP_SECONDS = 30.0
PROMPT = "One day Mia"


def main() -> int:
    """Build, start, ask, stop; the exit status."""
    options = _parser().parse_args()
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        return _fail("a clean root is made by root, on Linux")
    if shutil.which("debootstrap") is None:
        return _fail("debootstrap is not installed (Debian's package debootstrap)")
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        binds, variables = pip_like_here() if options.pip_like_here else ([], {})
        arguments = dict(df.argument(text) for text in options.build_arg)
        builder = Builder(folder, arguments, [*options.bind, *binds], variables)
        measured: dict[str, Any] = {"images": {}}
        for name in ("server", "client"):
            began = time.monotonic()
            root = builder.stage(name)
            measured["images"][name] = {"mib": _mib(root), "build_seconds": round(time.monotonic() - began, 1)}
        measured["base_mib"] = _mib(builder.base())
        measured |= try_images(Image.of(builder, "server"), Image.of(builder, "client"))
    except (df.DockerfileError, CleanRootError) as error:
        return _fail(str(error))
    finally:
        if not options.keep:
            for name in (BASE, *df.read(DOCKERFILE).stages):  # nothing but what was made here
                shutil.rmtree(folder / name, ignore_errors=True)
    print(json.dumps(measured, indent=2))
    return 0


class CleanRootError(Exception):
    """A step did not do what it should."""


# --- building -------------------------------------------------------------------------------------------------------


class Builder:
    """Carries out stages, each once, in roots under a folder."""

    def __init__(
        self,
        folder: Path,
        arguments: Mapping[str, str],
        binds: Sequence[tuple[Path, Path]],
        variables: Mapping[str, str],
    ) -> None:
        """`arguments` are ARGs; `binds` and `variables` are for RUN alone, and leave nothing."""
        self.file = df.read(DOCKERFILE)
        self._folder, self._binds, self._passed_on = folder, binds, variables
        known = {df.argument(text)[0] for stage in self.file.stages.values() for text in stage.all("ARG")}
        if unknown := set(arguments) - known - set(self.file.arguments):
            raise df.DockerfileError(f"--build-arg {', '.join(sorted(unknown))}: the Dockerfile has no such ARG")
        self._arguments = {**self.file.arguments, **arguments}
        self._given = dict(arguments)
        self.variables: dict[str, dict[str, str]] = {}  # ENV of each stage that was carried out
        self.users: dict[str, str] = {}

    def base(self) -> Path:
        """A root with nothing but Debian's essential packages."""
        root = self._folder / BASE
        if not (root / "etc" / "os-release").is_file():
            _say(f"debootstrap {SUITE}")
            _run(["debootstrap", "--variant=minbase", SUITE, str(root), _mirror()])
            # As in Debian's own image: no lists of packages, and none of apt's caches, then or later.
            (root / "etc/apt/apt.conf.d/no-cache").write_text(NO_CACHE)
            _run(["chroot", str(root), "/bin/sh", "-c", "apt-get clean && rm -rf /var/lib/apt/lists/* /var/log/*.log"])
        return root

    def stage(self, name: str) -> Path:
        """A stage's root."""
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
        _run(["cp", "--archive", "--reflink=auto", str(source), str(root)])
        shell = ["/bin/sh", "-c"]
        arguments: dict[str, str] = {}
        folder = "/"
        for ancestor in self._ancestors(name)[:-1]:
            shell = [df.words(text) for text in ancestor.all("SHELL")][-1] if ancestor.all("SHELL") else shell
            folder = ancestor.last("WORKDIR") if ancestor.all("WORKDIR") else folder
        for one in stage.instructions:
            _say(f"{name}: {one.name} {one.text[:100]}")
            if one.name == "ARG":
                key, default = df.argument(one.text)
                arguments[key] = self._given.get(key, self._arguments.get(key, default))
            elif one.name == "ENV":
                environment |= df.pairs(df.expand(one.text, {**arguments, **environment}))
            elif one.name == "SHELL":
                shell = df.words(one.text)
            elif one.name == "WORKDIR":
                folder = one.text
                (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif one.name == "COPY":
                self._copy(one, root, folder)
            elif one.name == "RUN":
                if one.text.startswith("--"):
                    raise df.DockerfileError(f"line {one.line}: flags of RUN are not known here")
                self._in_root(root, [*shell, one.text], {**arguments, **environment}, folder)
            elif one.name == "USER":
                self.users[name] = one.text
        self.variables[name] = environment
        return root

    def _ancestors(self, name: str) -> list[df.Stage]:
        """A stage and those that it is made of, the first one first."""
        stage = self.file.stages[name]
        parent = df.expand(stage.base, self._arguments)
        return [*(self._ancestors(parent) if parent in self.file.stages else []), stage]

    def _copy(self, one: df.Instruction, root: Path, folder: str) -> None:
        *sources, target = one.text.split()
        origin = PROJECT
        if sources[0].startswith("--from="):
            origin = self.stage(sources.pop(0).removeprefix("--from="))
        elif sources[0].startswith("--"):
            raise df.DockerfileError(f"line {one.line}: {sources[0]} is not known here")
        place = root / os.path.join(folder, target).lstrip("/")
        for source in sources:
            path = origin / source.lstrip("/")
            is_folder = path.is_dir()
            into = place if is_folder or not target.endswith("/") else place / path.name
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
        with _places(root, self._binds) as mounts:
            mounts = ["mount -t proc proc $ROOT/proc", "mount --rbind /dev $ROOT/dev", *mounts]
            script = "\n".join(["set -e", *mounts, 'exec chroot "$ROOT" "$@"'])
            inside = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', folder, *command]
            _run(["unshare", "--mount", "--", "/bin/bash", "-c", script, "run", *inside], environment)


@contextmanager
def _places(root: Path, binds: Sequence[tuple[Path, Path]]) -> Iterator[list[str]]:
    """Commands that show files and folders inside a root; where they are shown is made before, and gone afterwards."""
    made: list[Path] = []
    commands = []
    for source, target in [(Path("/etc/resolv.conf"), Path("/etc/resolv.conf")), *binds]:
        place = root / str(target).lstrip("/")
        missing = [folder for folder in [*reversed(place.parents), place] if not folder.exists()]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir(exist_ok=True) if source.is_dir() else place.touch()
        made += missing
        commands.append(f"mount --bind -o ro {shlex.quote(str(source))} {shlex.quote(str(place))}")
    try:
        yield commands
    finally:
        for place in reversed(made):
            if place.is_dir():
                with suppress(OSError):  # something else lies there by now
                    place.rmdir()
            else:
                place.unlink()


def pip_like_here() -> tuple[list[tuple[Path, Path]], dict[str, str]]:
    """What pip's configuration on this machine names: what is shown inside, and variables."""
    pip = [sys.executable, "-m", "pip", "config"]
    files = re.findall(r"^\s*(/\S+), exists: True$", _output([*pip, "debug"]), re.MULTILINE)
    values = dict(line.partition("=")[::2] for line in _output([*pip, "list"]).splitlines() if "=" in line)
    named = []
    for name, value in values.items():
        for word in re.split(r"\\n|\s+", value.strip("'")):
            path = word.removeprefix("file://")
            # An index's pages lead to files beside it.
            named.append(os.path.dirname(path.rstrip("/")) if name.endswith("index-url") else path)
    paths = {Path(name) for name in [*files, *named] if name.startswith("/") and Path(name).exists()}
    certificates = {Path(value.strip("'")) for name, value in values.items() if name.endswith(".cert")}
    binds = [(path, path) for path in sorted(paths - certificates)]
    variables = {}
    for path in sorted(certificates & paths)[:1]:  # under another name: packages of Debian own the usual one
        binds.append((path, MACHINES_CERTIFICATES))
        variables["PIP_CERT"] = str(MACHINES_CERTIFICATES)
    return binds, variables


def _bind(text: str) -> tuple[Path, Path]:
    source, _, target = text.partition(":")
    if not Path(source).exists():
        raise argparse.ArgumentTypeError(f"there is no {source}")
    return Path(source), Path(target or source)


def _mirror() -> str:
    """Where apt finds Debian's packages on this machine."""
    told = _output(["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(SUITE)", "Created-By: Packages"])
    for line in told.splitlines():
        uri, *suites = line.split()
        if SUITE in suites:
            return uri
    raise CleanRootError(f"apt knows no mirror of {SUITE} here; run apt-get update")


# --- running --------------------------------------------------------------------------------------------------------


@dataclass
class Image:
    """What is started, and how.

    Attributes:
        name: of its stage.
        root: its files.
        user: numbers of user and group.
        environment: of its processes.
        entrypoint: the program.
        command: its arguments by default.
        health: what its HEALTHCHECK runs.
    """

    name: str
    root: Path
    user: tuple[int, int]
    environment: dict[str, str]
    entrypoint: list[str]
    command: list[str]
    health: list[str]
    written: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, builder: Builder, name: str) -> Image:
        """A stage, as an engine would start it."""
        stage = builder.file.stages[name]
        root = builder.stage(name)
        number, _, group = builder.users[name].partition(":")
        if not (number.isdecimal() and group.isdecimal() and int(number) and int(group)):
            raise df.DockerfileError(f"USER {builder.users[name]} of {name} is no pair of numbers, none of them root's")
        return cls(
            name, root, (int(number), int(group)), builder.variables[name],
            df.words(stage.last("ENTRYPOINT")), df.words(stage.last("CMD")),
            df.health_command(stage.last("HEALTHCHECK")),
        )  # fmt: skip


class Container:
    """A running image. Its first process is `pid` outside and 1 inside."""

    def __init__(self, image: Image, arguments: Sequence[str], log: Path, *, network_of: Container | None) -> None:
        """`network_of` lends its network: containers of one pod."""
        self._image = image
        user, group = image.user
        script = "\n".join(
            [
                "set -e",
                "mount --make-rprivate /",
                "ip link set lo up",
                "mount --bind $ROOT $ROOT",
                "mount -t proc proc $ROOT/proc",
                "mount -t tmpfs -o nosuid,size=1M,mode=755 dev $ROOT/dev",
                "for d in null zero full random urandom; do",
                "  touch $ROOT/dev/$d; mount --bind /dev/$d $ROOT/dev/$d",
                "done",
                "mkdir $ROOT/dev/shm && mount -t tmpfs -o nosuid,nodev,noexec,size=64M shm $ROOT/dev/shm",
                *(
                    f"mount -t tmpfs -o nosuid,nodev,size=1G,uid={user},gid={group},mode=1777 tmpfs $ROOT{place}"
                    for place in WRITABLE
                ),
                "mount -o remount,ro,bind $ROOT $ROOT",
                'exec chroot $ROOT /usr/bin/setpriv --reuid "$USER_ID" --regid "$GROUP_ID" --clear-groups '
                "--no-new-privs --inh-caps=-all --bounding-set=-all -- /usr/bin/env --ignore-environment "
                + " ".join(shlex.quote(f"{name}={value}") for name, value in image.environment.items())
                + ' "$@"',
            ]
        )
        enter = [] if network_of is None else ["nsenter", "--target", str(network_of.pid), "--net", "--"]
        spaces = ["--mount", "--ipc", "--uts", "--pid", "--fork", "--kill-child", *(["--net"] if not enter else [])]
        command = [*enter, "unshare", *spaces, "/bin/bash", "-c", script, "run", *image.entrypoint, *arguments]
        environment = {
            "PATH": os.environ["PATH"],
            "ROOT": str(image.root),
            "USER_ID": str(user),
            "GROUP_ID": str(group),
        }
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603  (made of the Dockerfile)
                command, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        self.began = time.monotonic()
        self.pid = self._first_process()

    def _first_process(self) -> int:
        """The one that unshare forked, by its number outside."""
        while time.monotonic() < self.began + 10:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            if children:
                return int(children[0])
            time.sleep(0.01)
        raise CleanRootError(f"{self._image.name} has not started:\n{self.log.read_text()}")

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """A command inside, as the image's own user, as an engine's HEALTHCHECK and exec are."""
        user, group = self._image.user
        enter = [
            "nsenter",
            "--target",
            str(self.pid),
            "--mount",
            "--net",
            "--pid",
            "--ipc",
            f"--root=/proc/{self.pid}/root",
        ]
        drop = ["/usr/bin/setpriv", "--reuid", str(user), "--regid", str(group), "--clear-groups", "--no-new-privs"]
        return subprocess.run(  # noqa: S603  (made of the Dockerfile)
            [*enter, *drop, *command],
            env=self._image.environment, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def outside(self, command: Sequence[str]) -> list[str]:
        """The same command from this machine's own files, over the container's network."""
        return ["nsenter", "--target", str(self.pid), "--net", "--", *command]

    def wait_until_healthy(self) -> float:
        """Until its HEALTHCHECK passes: seconds since the start."""
        while True:
            if self.run(self._image.health).returncode == 0:
                return time.monotonic() - self.began
            if self._process.poll() is not None or time.monotonic() > self.began + READY_SECONDS:
                raise CleanRootError(f"{self._image.name} has not become healthy:\n{self.log.read_text()}")
            time.sleep(0.25)

    def facts(self) -> dict[str, Any]:
        """Who it runs as, what it may, what it takes, and what it has written."""
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines() if ":\t" in line
        )
        written = {
            place: sum(
                path.lstat().st_size for path in Path(f"/proc/{self.pid}/root{place}").rglob("*") if path.is_file()
            )
            for place in WRITABLE
        }
        touched = self.run(["/usr/bin/touch", "/opt/gradellm/here", "/etc/here", "/here"])
        return {
            "uid": int(status["Uid"].split()[0]),
            "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
            "no_new_privileges": status["NoNewPrivs"] == "1",
            "peak_rss_mib": round(int(status["VmHWM"].split()[0]) / 1024),
            "written_bytes": written,
            "root_is_read_only": touched.stderr.count("Read-only file system") == 3,
        }

    def stop(self) -> tuple[int, float]:
        """SIGTERM to its first process: its exit status, and seconds until then."""
        began = time.monotonic()
        os.kill(self.pid, signal.SIGTERM)
        try:
            return self._process.wait(STOP_SECONDS), time.monotonic() - began
        except subprocess.TimeoutExpired:
            raise CleanRootError(f"{self._image.name} does not stop:\n{self.log.read_text()}") from None

    def kill(self) -> None:
        """However it is."""
        if self._process.poll() is None:
            self._process.kill()  # and with it, by --kill-child, what is inside
            self._process.wait()


@contextmanager
def started(image: Image, arguments: Sequence[str], *, network_of: Container | None = None) -> Iterator[Container]:
    """A running image, which has ended afterwards."""
    container = Container(image, arguments, image.root.parent / f"{image.name}.log", network_of=network_of)
    try:
        yield container
    finally:
        container.kill()


def try_images(server: Image, client: Image) -> dict[str, Any]:
    """Start both, ask both, stop both: what was seen.

    Raises:
        CleanRootError: where something is not as it should be.
    """
    arguments = kubernetes_arguments()
    if arguments is None:
        _say("kubectl is not installed: the server is not started as deploy/kubernetes starts it")
    else:
        with started(server, arguments) as serving:
            serving.wait_until_healthy()
            serving.stop()
    with started(server, server.command) as serving:
        ready = serving.wait_until_healthy()
        began = time.monotonic()
        explain = ["explain", "--target", "localhost:50051", PROMPT, "--max-new-tokens", "24", "--format", "json"]
        asked = subprocess.run(  # noqa: S603
            serving.outside([sys.executable, "-m", "gradellm", *explain]),
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        if asked.returncode:
            raise CleanRootError(f"no explanation came:\n{asked.stderr}\n{serving.log.read_text()}")
        seconds = time.monotonic() - began
        num_explained = len(json.loads(asked.stdout)["attributions"])
        gateway = ["gateway", "--listen", "127.0.0.1:8080", "--target", "localhost:50051"]
        with started(client, gateway, network_of=serving) as passing:
            passing_ready = passing.wait_until_healthy()
            chat = subprocess.run(  # noqa: S603
                passing.outside([sys.executable, "-c", CHAT, PROMPT]),
                capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
            if chat.returncode:
                raise CleanRootError(f"no chat came:\n{chat.stderr}\n{passing.log.read_text()}")
            seen = {"client": {"ready_seconds": round(passing_ready, 1), **passing.facts(), **json.loads(chat.stdout)}}
            status, took = passing.stop()
            seen["client"] |= {"exit_status": status, "stop_seconds": round(took, 2)}
        seen["server"] = {
            "ready_seconds": round(ready, 1),
            **serving.facts(),
            "explained_tokens": num_explained,
            "explain_command_seconds": round(seconds, 1),
        }
        status, took = serving.stop()
        seen["server"] |= {"exit_status": status, "stop_seconds": round(took, 2)}
    for name, facts in seen.items():
        wrong = [
            *(["it runs as root"] if not facts["uid"] else []),
            *(["it has capabilities"] if facts["capabilities"] else []),
            *(["it may gain privileges"] if not facts["no_new_privileges"] else []),
            *(["its root can be written"] if not facts["root_is_read_only"] else []),
            *([f"it ended with status {facts['exit_status']}"] if facts["exit_status"] else []),
        ]
        if wrong:
            raise CleanRootError(f"{name}: {'; '.join(wrong)}")
    return seen


def kubernetes_arguments() -> list[str] | None:
    """What deploy/kubernetes gives the server; None where there is no kubectl to say it."""
    if shutil.which("kubectl") is None:
        return None
    rendered = yaml.safe_load_all(_output(["kubectl", "kustomize", str(PROJECT / "deploy/kubernetes/overlays/cpu")]))
    (deployment,) = [one for one in rendered if one["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return list(container["args"])


# A streamed chat through the gateway, each token with its scores, by nothing but Python's own library.
CHAT = """
import json, sys, urllib.request
body = {"messages": [{"role": "user", "content": sys.argv[1]}], "stream": True, "max_tokens": 24,
        "gradellm": {"attribution": "paper"}}
request = urllib.request.Request("http://127.0.0.1:8080/v1/chat/completions", json.dumps(body).encode(),
                                 {"Content-Type": "application/json"})
with urllib.request.urlopen(request, timeout=50) as answer:
    lines = [line[6:] for line in answer.read().decode().splitlines() if line.startswith("data: ")]
chunks = [json.loads(line) for line in lines if line != "[DONE]"]
assert lines[-1] == "[DONE]", lines[-1]
assert any("gradellm" in json.dumps(chunk) for chunk in chunks), chunks[:2]
print(json.dumps({"chat_chunks": len(chunks)}))
"""


def _mib(root: Path) -> int:
    """What its files take, each once."""
    return int(
        _output(["du", "--summarize", "--one-file-system", "--apparent-size", "--block-size=1M", str(root)]).split()[0]
    )


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    ended = subprocess.run(  # noqa: S603  (made of the Dockerfile)
        command, env=None if environment is None else {"PATH": os.environ["PATH"], **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if ended.returncode:
        raise CleanRootError(f"{shlex.join(command[-3:])[:300]} ended with {ended.returncode}:\n{ended.stdout[-3000:]}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Build deploy/Dockerfile's images in clean roots, start them read-only, and stream an explanation."
    )
    parser.add_argument("--folder", type=Path, default=PROJECT / "build" / "image", help="where roots are made")
    parser.add_argument(
        "--build-arg", action="append", default=[], metavar="NAME=VALUE", help="as docker build takes it"
    )
    parser.add_argument("--bind", action="append", default=[], type=_bind, metavar="PATH[:PATH]", help="show it to RUN")
    parser.add_argument(
        "--pip-like-here", action="store_true", help="RUN's pip finds packages where this machine's does"
    )
    parser.add_argument("--keep", action="store_true", help="leave the roots where they are")
    return parser


if __name__ == "__main__":
    sys.exit(main())
