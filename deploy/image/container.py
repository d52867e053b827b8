"""Starts an image as a container engine would with --read-only, --cap-drop ALL and no-new-privileges."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dockerfile as df
from builder import Builder
from commands import CleanRootError

WRITABLE = ("/tmp", "/cache")  # noqa: S108  (of the image)

READY_SECONDS = 180.0

STOP_SECONDS = 30.0


@dataclass
class Image:
    """A built stage and its configuration.

    Attributes:
        name: name of the stage.
        root: its root file system.
        user: user and group id.
        environment: environment variables.
        entrypoint: ENTRYPOINT.
        command: CMD.
        health: command of the HEALTHCHECK.
    """

    name: str
    root: Path
    user: tuple[int, int]
    environment: dict[str, str]
    entrypoint: list[str]
    command: list[str]
    health: list[str]

    @classmethod
    def of(cls, builder: Builder, name: str) -> Image:
        """The image of a stage."""
        stage = builder.file.stages[name]
        root = builder.stage(name)
        number, _, group = builder.users[name].partition(":")
        if not (number.isdecimal() and group.isdecimal() and int(number) and int(group)):
            raise df.DockerfileError(f"USER {builder.users[name]} of {name} is not UID:GID with both above 0")
        return cls(
            name, root, (int(number), int(group)), builder.variables[name],
            df.words(stage.last("ENTRYPOINT")), df.words(stage.last("CMD")),
            df.health_command(stage.last("HEALTHCHECK")),
        )  # fmt: skip


class Container:
    """A running image; `pid` is its first process, as seen from outside."""

    def __init__(self, image: Image, arguments: Sequence[str], log: Path, *, network_of: Container | None) -> None:
        """Start it; with `network_of`, in another container's network namespace, as in a pod."""
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
        self.start_time = time.monotonic()
        self.pid = self._first_process()

    def _first_process(self) -> int:
        """The process id, outside, of the process that unshare forked."""
        while time.monotonic() < self.start_time + 10:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            if children:
                return int(children[0])
            time.sleep(0.01)
        raise CleanRootError(f"{self._image.name} has not started:\n{self.log.read_text()}")

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command inside as the image's user, as HEALTHCHECK and `docker exec` do."""
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
        """The command line that runs a command of this machine in the container's network namespace."""
        return ["nsenter", "--target", str(self.pid), "--net", "--", *command]

    def wait_until_healthy(self) -> float:
        """Wait for its HEALTHCHECK to pass; seconds since the start."""
        while True:
            if self.run(self._image.health).returncode == 0:
                return time.monotonic() - self.start_time
            if self._process.poll() is not None or time.monotonic() > self.start_time + READY_SECONDS:
                raise CleanRootError(f"{self._image.name} has not become healthy:\n{self.log.read_text()}")
            time.sleep(0.25)

    def facts(self) -> dict[str, Any]:
        """User, privileges, peak memory, and bytes written."""
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
        """Send SIGTERM to its first process; its exit status, and the seconds it took."""
        start_time = time.monotonic()
        os.kill(self.pid, signal.SIGTERM)
        try:
            return self._process.wait(STOP_SECONDS), time.monotonic() - start_time
        except subprocess.TimeoutExpired:
            raise CleanRootError(f"{self._image.name} does not stop:\n{self.log.read_text()}") from None

    def kill(self) -> None:
        """Kill it, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()  # and, by --kill-child, all processes inside
            self._process.wait()


@contextmanager
def start(image: Image, arguments: Sequence[str], *, network_of: Container | None = None) -> Iterator[Container]:
    """A running image, which is killed when the context is left."""
    container = Container(image, arguments, image.root.parent / f"{image.name}.log", network_of=network_of)
    try:
        yield container
    finally:
        container.kill()
