"""A server of one's own: started as a child process, reached by a Unix socket, ended with its client.

The child's standard input is a pipe that only this process holds. When this process ends, however that happens, the
pipe closes and the child ends too; there is nothing to clean up by hand and no port to choose.

A process that this one makes by os.fork has copies of all that, and ends without taking the server or its socket along:
both belong to the process that started them.
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

_STOP_SECONDS = 10.0  # for each of: its standard input closed, SIGTERM, SIGKILL
_LAST_LINES = 12
_PAUSE_SECONDS = 5.0  # between two looks, beyond which this process itself was stopped: not the server's time


class LocalServerKeywords(TypedDict, total=False):
    """The keywords of `Client.local`."""

    model: str | os.PathLike[str] | None
    """A path or hub id. By default the demo model that is shipped with the server."""
    dtype: str | None
    """What the weights are computed in: float32, bfloat16, ..."""
    device: str | None
    """Where the model lies: cpu, cuda, cuda:1, ..."""
    server_args: Sequence[str]
    """Further arguments of `gradellm serve`."""
    startup_timeout_seconds: float
    """How long it may take to load the model. 600 by default."""
    inherit_stderr: bool
    """Let the server's own lines through to this process's standard error, instead of keeping them for errors."""


class LocalServer:
    """The child process. The constructor starts it; `startup` tells whether it lives; `close` ends it."""

    PROBE_SECONDS: Final = 2.0
    """How long to wait for one answer while it starts."""

    def __init__(self, keywords: LocalServerKeywords) -> None:
        if unknown := keywords.keys() - LocalServerKeywords.__annotations__.keys():
            known = ", ".join(LocalServerKeywords.__annotations__)
            raise TypeError(f"local() has no keyword {', '.join(sorted(unknown))}; it has {known}")
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
    def may_answer(self) -> bool:
        """Whether it listens. A connection tried before would make gRPC pause for longer and longer."""
        return self._socket.exists()

    def startup(self) -> Iterator[float]:
        """Yield how long to pause, in seconds, before each look whether it answers.

        Raises LocalServerError where the child has exited, or its time is over.
        """
        waited, looked_at = 0.0, time.monotonic()
        while waited < self._timeout:
            yield 0.05
            now = time.monotonic()
            waited, looked_at = waited + min(now - looked_at, _PAUSE_SECONDS), now
            if self._process.poll() is not None:
                code = self._process.returncode
                how = f"ended with exit code {code}" if code >= 0 else f"was killed by signal {-code}"
                raise self._error(f"the local server {how} before it was ready", code)
        raise self._error(
            f"the local server was not ready within {self._timeout:g} s; "
            "if the model is large, allow it a longer startup_timeout_seconds"
        )

    def close(self) -> None:
        """End the child, by force if it does not end by itself, and remove the socket.

        In a process that was forked off after the start, the server is the parent's and stays.
        """
        if os.getpid() != self._owner:
            return
        self._close_stdin()
        for harder in (self._process.terminate, self._process.kill, None):
            try:
                self._process.wait(_STOP_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if harder is not None:
                    harder()
        self._remove_directory()

    def _close_stdin(self) -> None:
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()

    def _error(self, message: str, exit_code: int | None = None) -> LocalServerError:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        last = "\n".join(lines[-_LAST_LINES:])
        message += f"; its last lines:\n{last}" if last else ""
        return LocalServerError(message, exit_code=exit_code, stderr=last)


_running: weakref.WeakSet[LocalServer] = weakref.WeakSet()


def _let_go_after_fork() -> None:
    """In a forked child: close its copies of the pipes, else servers would outlive the process that started them."""
    for server in list(_running):
        server._close_stdin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_after_fork)


def _socket_directory() -> str:
    """Make a directory whose name fits into a socket's address, and into a gRPC target as it is."""
    directory = tempfile.mkdtemp(prefix="gradellm-")
    socket = f"{directory}/gradellm.sock"
    if len(socket.encode()) < 104 and re.fullmatch(r"[\w./+-]+", socket, re.ASCII):  # 108 bytes on Linux, 104 on macOS
        return directory
    Path(directory).rmdir()
    return tempfile.mkdtemp(prefix="gradellm-", dir="/tmp")


def _remove(directory: str, owner: int) -> None:
    """Remove the socket's directory when the client is closed or this process ends, and not when a fork of it does."""
    if os.getpid() == owner:
        shutil.rmtree(directory, ignore_errors=True)
