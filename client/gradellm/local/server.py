"""A local server: a child process with a Unix socket, which ends with its client.

The child's standard input is a pipe that only this process holds. When this process ends, even by a crash, the pipe
closes and the child exits; there is no port to choose and nothing to clean up.

A process made by os.fork inherits copies of the pipe and the socket, but neither stops the server nor removes the
socket: both belong to the process that started them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, TypedDict

from gradellm.errors import LocalServerError
from gradellm.local.processes import command, environment, require_server_extra

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["LocalServer", "LocalServerKeywords"]

_STOP_SECONDS = 10.0  # after each of: closing standard input, SIGTERM, SIGKILL
_LOG_LINES = 12  # in an error
_MAX_STEP_SECONDS = 5.0  # a longer time between two polls means that this process was suspended


class LocalServerKeywords(TypedDict, total=False):
    """The keywords of `Client.local`."""

    model: str | os.PathLike[str] | None
    """A path or hub id; by default the demo model."""
    dtype: str | None
    """The dtype of computation: float32, bfloat16, ..."""
    device: str | None
    """The model's device: cpu, cuda, cuda:1, ..."""
    server_args: Sequence[str]
    """Further arguments of `gradellm serve`."""
    startup_timeout_seconds: float
    """How long it may take to load the model; 600 by default."""
    inherit_stderr: bool
    """Write the server's log to this process's standard error, instead of keeping its last lines for errors."""


class LocalServer:
    """The server process. The constructor starts it, `startup` polls it until it is ready, `close` stops it."""

    PROBE_SECONDS: Final = 2.0
    """Timeout of a call that checks whether it is ready."""

    def __init__(self, keywords: LocalServerKeywords) -> None:
        if unknown := keywords.keys() - LocalServerKeywords.__annotations__.keys():
            allowed = ", ".join(LocalServerKeywords.__annotations__)
            raise TypeError(f"local() has no keyword {', '.join(sorted(unknown))}; it has {allowed}")
        self._timeout = keywords.get("startup_timeout_seconds", 600.0)
        require_server_extra()
        self._owner = os.getpid()
        directory = _socket_directory()
        self._remove_directory = weakref.finalize(self, _remove, directory, self._owner)
        self._socket = Path(directory, "gradellm.sock")
        self._log = Path(directory, "stderr.log")
        self.target = f"unix:{self._socket}"
        arguments = ["--listen", self.target, "--exit-with-stdin"]
        for flag, value in (
            ("model", keywords.get("model")),
            ("dtype", keywords.get("dtype")),
            ("device", keywords.get("device")),
        ):
            arguments += [f"--{flag}", os.fspath(value)] if value is not None else []
        with self._log.open("wb") as log:
            output: IO[bytes] | int = 2 if keywords.get("inherit_stderr") else log
            self._process = subprocess.Popen(  # noqa: S603  (this Python, and arguments without a shell)
                command("gradellm_server", [*arguments, *keywords.get("server_args", ())]),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environment(),
                start_new_session=True,  # Ctrl-C is for this process, which then ends the child in order
            )
        _running.add(self)

    @property
    def is_listening(self) -> bool:
        """Whether its socket exists. Connection attempts before that would start gRPC's backoff."""
        return self._socket.exists()

    def startup(self) -> Iterator[float]:
        """Yield the delay in seconds before each poll.

        Raises LocalServerError if the process has exited, or is not ready in time.
        """
        waited, polled_at = 0.0, time.monotonic()
        while waited < self._timeout:
            yield 0.05
            now = time.monotonic()
            waited, polled_at = waited + min(now - polled_at, _MAX_STEP_SECONDS), now
            if self._process.poll() is not None:
                code = self._process.returncode
                how = f"exited with code {code}" if code >= 0 else f"was killed by signal {-code}"
                raise self._error(f"the local server {how} before it was ready", code)
        raise self._error(
            f"the local server was not ready within {self._timeout:g} s; "
            "a large model may need a longer startup_timeout_seconds"
        )

    def close(self) -> None:
        """Stop the process, by force if necessary, and remove the socket.

        No effect in a fork of the process that started it.
        """
        if os.getpid() != self._owner:
            return
        self._close_stdin()
        for next_signal in (self._process.terminate, self._process.kill, None):
            try:
                self._process.wait(_STOP_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if next_signal is not None:
                    next_signal()
        self._remove_directory()

    def _close_stdin(self) -> None:
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()

    def _error(self, message: str, exit_code: int | None = None) -> LocalServerError:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        last = "\n".join(lines[-_LOG_LINES:])
        message += f"; its last lines:\n{last}" if last else ""
        return LocalServerError(message, exit_code=exit_code, stderr=last)


_running: weakref.WeakSet[LocalServer] = weakref.WeakSet()


def _close_pipes_after_fork() -> None:
    """Close the inherited pipes in a forked child, which would keep servers alive after their process has ended."""
    for server in list(_running):
        server._close_stdin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_pipes_after_fork)


def _socket_directory() -> str:
    """Create a directory whose path fits into a socket address, and needs no escaping in a gRPC target."""
    directory = tempfile.mkdtemp(prefix="gradellm-")
    socket = f"{directory}/gradellm.sock"
    if len(socket.encode()) < 104 and re.fullmatch(r"[\w./+-]+", socket, re.ASCII):  # 108 bytes on Linux, 104 on macOS
        return directory
    Path(directory).rmdir()
    return tempfile.mkdtemp(prefix="gradellm-", dir="/tmp")


def _remove(directory: str, owner: int) -> None:
    """Remove the socket's directory, except in a fork of the process that created it."""
    if os.getpid() == owner:
        shutil.rmtree(directory, ignore_errors=True)
