"""What an operator may change while the server runs: read from files, and read again when they have changed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

CHECK_SECONDS = 1.0  # between two looks at the files: a look costs a system call a file

Value = TypeVar("Value")
_Mark = tuple[int, int, int] | None

logger = logging.getLogger(__name__)


class SecurityFileError(Exception):
    """A file of certificates or tokens cannot be used; names the file, what is wrong and what to do."""


class Reloading(Generic[Value]):
    """A value that files say, from any thread.

    Args:
        paths: the files.
        load: reads them.
        check_seconds: how long a change may go unnoticed.

    Raises:
        SecurityFileError: where `load` does the first time. Later, what is broken is told in the log, once a change,
            and the value stays as it was: a renewal that failed must not shut everybody out.
    """

    def __init__(self, paths: Sequence[Path], load: Callable[[], Value], *, check_seconds: float | None = None) -> None:
        self._paths, self._load = paths, load
        self._check_seconds = CHECK_SECONDS if check_seconds is None else check_seconds
        self._lock = threading.Lock()
        self._marks = self._look()
        self._looked_at = time.monotonic()
        self._value = load()

    @property
    def value(self) -> Value:
        """What the files say now."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked_at >= self._check_seconds:
                self._looked_at = now
                marks = self._look()  # before they are read: what changes meanwhile is found the next time
                if marks != self._marks:
                    self._marks = marks
                    self._reload()
            return self._value

    def _reload(self) -> None:
        try:
            self._value = self._load()
        except SecurityFileError as error:
            logger.warning("what was loaded before stays in use: %s", error)
        else:
            logger.info("loaded anew: %s", ", ".join(map(str, self._paths)))

    def _look(self) -> list[_Mark]:
        return [_mark(path) for path in self._paths]


def _mark(path: Path) -> _Mark:
    """What differs when a file has been written or another has taken its place; symbolic links are followed."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def read_file(path: Path, what: str) -> bytes:
    """A file's content.

    Raises:
        SecurityFileError: where it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise SecurityFileError(f"{what} {path} cannot be read: {error.strerror}") from error
