"""Values that are loaded from files, and loaded again when the files change while the server runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

CHECK_SECONDS = 1.0  # between two checks; a check costs one stat a file

Value = TypeVar("Value")
_Stamp = tuple[int, int, int] | None  # modification time, size, inode; None for a missing file

logger = logging.getLogger(__name__)


class SecurityFileError(Exception):
    """A file of certificates or tokens cannot be used; the message names the file, the problem and the remedy."""


class FileWatcher(Generic[Value]):
    """A value loaded from files; safe to use from any thread.

    Args:
        paths: the files.
        load: reads them.
        check_seconds: how long a change may go unnoticed.

    Raises:
        SecurityFileError: if the first `load` raises it. Later failures are logged, once for each change, and the value
            is kept: a failed renewal must not lock every client out.
    """

    def __init__(self, paths: Sequence[Path], load: Callable[[], Value], *, check_seconds: float | None = None) -> None:
        self._paths, self._load = paths, load
        self._check_seconds = CHECK_SECONDS if check_seconds is None else check_seconds
        self._lock = threading.Lock()
        self._stamps = self._stat()
        self._checked_at = time.monotonic()
        self._value = load()

    @property
    def value(self) -> Value:
        """The current value."""
        with self._lock:
            now = time.monotonic()
            if now - self._checked_at >= self._check_seconds:
                self._checked_at = now
                stamps = self._stat()  # before loading, so that a change during the load is found next time
                if stamps != self._stamps:
                    self._stamps = stamps
                    self._reload()
            return self._value

    def _reload(self) -> None:
        try:
            self._value = self._load()
        except SecurityFileError as error:
            logger.warning("Reload failed; keeping the previous version: %s", error)
        else:
            logger.info("Reloaded %s", ", ".join(map(str, self._paths)))

    def _stat(self) -> list[_Stamp]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> _Stamp:
    """Changes when a file is written or replaced; symbolic links are followed."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def read_file(path: Path, what: str) -> bytes:
    """A file's content.

    Raises:
        SecurityFileError: if it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise SecurityFileError(f"{what} {path} cannot be read: {error.strerror}") from error
