"""The results file of a run: one line of JSON per example, so that a stopped run can be resumed.

    {"format": "gradellm evaluation", "version": 1, "settings": {...}}     the run's identity
    {"id": "dev-7", "result": {...}}                                       a finished example
    {"id": "dev-8", "error": "..."}                                        a failed one; a later line may have a result

The file is append-only, and a line is on disk before `append` returns. So if the process is killed, at most the last
line is incomplete: it is truncated when the file is opened again, and its example is evaluated again. Any other
unreadable line is an error, because something else has changed the file.

The file is locked while it is open, if the file system supports locks, so that only one run writes it.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from gradellm.errors import GradellmError
from gradellm.serialization import MalformedError, from_json, short_repr

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

__all__ = ["Results", "ResultsFile", "ResultsFileError", "differences", "read_results", "write_results"]

_FORMAT, _VERSION = "gradellm evaluation", 1
_BEGINNING = json.dumps({"format": _FORMAT})[:-1].encode()


class ResultsFileError(GradellmError):
    """A results file that cannot be opened, read or written, or belongs to another run."""


@dataclass(frozen=True)
class Results:
    """The contents of a results file."""

    settings: Mapping[str, Any]
    done: Mapping[str, Any]
    """The records of finished examples, by id."""
    failed: Mapping[str, str]
    """The errors of failed examples, by id."""


def read_results(path: str | os.PathLike[str]) -> Results:
    """Read a results file with any settings, also while a run appends to it. Raises ResultsFileError."""
    file = ResultsFile(path, {})
    try:
        with open(file.path, "rb") as opened:
            data = opened.read()
    except OSError as error:
        raise ResultsFileError(f"the results file {file.path} cannot be read: {error.strerror}") from error
    return file.read_only(data)


def write_results(path: str | os.PathLike[str], results: Results) -> None:
    """Write a results file atomically, in the order of ids, replacing an existing file. Raises ResultsFileError."""
    path = Path(path)
    lines = [_header_line(results.settings)]
    for example_id in sorted({*results.done, *results.failed}):
        if example_id in results.done:
            entry = {"id": example_id, "result": results.done[example_id]}
            lines.append(_line(entry, f"the result of example {example_id}"))
        else:
            entry = {"id": example_id, "error": results.failed[example_id]}
            lines.append(_line(entry, f"the failure of example {example_id}"))
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ResultsFileError(f"the results file {path} cannot be written: {error.strerror}") from error


class ResultsFile:
    """The results of a run, on disk and in memory.

    with ResultsFile("out.jsonl", settings={"model": ..., "methods": [...]}) as results:
        for example in examples:
            if example.id not in results.done:
                results.append(example.id, evaluate(example))

    `settings` is the run's identity, as JSON-compatible values. An existing file is resumed if its settings are equal,
    else refused. Not thread-safe. Raises ResultsFileError.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.path = os.fspath(path)
        self.settings: dict[str, Any] = json.loads(_line(dict(settings), "the settings"))
        self.done: dict[str, Any] = {}
        """The records of finished examples, by id, as read back from JSON."""
        self.failed: dict[str, str] = {}
        """The errors of failed examples without a later result, by id."""
        self.cut_bytes = 0
        """The length of an incomplete last line that was truncated on opening."""
        self._fd: int | None = None
        self._end = 0  # of the last complete line

    def __enter__(self) -> Self:
        if self._fd is not None:
            raise ResultsFileError(f"{self.path} is open already")
        self.done, self.failed, self.cut_bytes = {}, {}, 0
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise ResultsFileError(
                f"the results file {self.path} cannot be opened: {error.strerror}; its folder must exist, and both "
                "must be writable"
            ) from error
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise ResultsFileError(f"{self.path} is not a regular file")
            _lock(self._fd, self.path)
            with os.fdopen(self._fd, "rb", closefd=False) as file:
                self._resume(file.read())
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def append(self, example_id: str, record: Mapping[str, Any]) -> bool:
        """Append the record of an example; it is on disk when this returns.

        Return False, and write nothing, if the example has a result already.
        """
        if example_id in self.done:
            return False
        line = _line({"id": example_id, "result": dict(record)}, f"the result of example {example_id}")
        self._write(line)
        self.done[example_id] = json.loads(line)["result"]
        self.failed.pop(example_id, None)
        return True

    def append_failure(self, example_id: str, error: str) -> bool:
        """Append the error of an example, which a resumed run evaluates again.

        Return False, and write nothing, if the example has a result already.
        """
        if example_id in self.done:
            return False
        self._write(_line({"id": example_id, "error": error}, f"the failure of example {example_id}"))
        self.failed[example_id] = error
        return True

    # --- writing ------------------------------------------------------------------------------------------------------

    def _write(self, line: bytes) -> None:
        """Append a line atomically."""
        if self._fd is None:
            raise ResultsFileError(f"{self.path} is not open; write to it inside `with ResultsFile(...) as results:`")
        try:
            os.lseek(self._fd, self._end, os.SEEK_SET)
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            os.fsync(self._fd)
        except BaseException as error:  # an interrupt, too, must leave complete lines
            self._truncate()
            if isinstance(error, OSError):
                raise ResultsFileError(
                    f"the results file {self.path} cannot be written: {error.strerror}; its earlier lines are intact: "
                    "free disk space, and resume the run"
                ) from error
            raise
        self._end += len(line)

    def _truncate(self) -> None:
        """Truncate the file after the last complete line."""
        if self._fd is None:
            return
        try:
            os.ftruncate(self._fd, self._end)
            os.fsync(self._fd)
        except OSError:
            self._close()  # so that no line is appended to an incomplete one; reopening truncates it

    def _close(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    # --- reading ------------------------------------------------------------------------------------------------------

    def read_only(self, data: bytes) -> Results:
        """Parse the contents of a file without opening it for appending."""
        *lines, tail = data.split(b"\n")
        if not lines:
            raise ResultsFileError(self._no_results(tail))
        header = self._header(lines[0])
        for number, line in enumerate((*lines[1:], tail), 2):
            if line or number <= len(lines):
                last = number > len(lines) or (number == len(lines) and not tail)
                self._read(line, number, may_be_torn=last)
        return Results(_settings_of(header), self.done, self.failed)

    def _resume(self, data: bytes) -> None:
        """Parse the contents of the opened file, which may be empty."""
        *lines, tail = data.split(b"\n")
        if not lines:
            self._begin(tail)
            return
        self._check_header(lines[0])
        self._end = len(data) - len(tail)
        for number, line in enumerate(lines[1:], 2):
            last = number == len(lines) and not tail
            if not self._read(line, number, may_be_torn=last):
                self._end -= len(line) + 1
        if tail and self._read(tail, len(lines) + 1, may_be_torn=True):  # complete except for the line break
            self._write(tail + b"\n")
            return
        self.cut_bytes = len(data) - self._end
        if self.cut_bytes:
            self._truncate()

    def _begin(self, found: bytes) -> None:
        """Write the header of a new file, or of one with an incomplete header."""
        if not _BEGINNING.startswith(found[: len(_BEGINNING)]):
            raise ResultsFileError(self._no_results(found))
        self._truncate()
        self._write(_header_line(self.settings))
        if hasattr(os, "O_DIRECTORY"):  # make the new directory entry durable
            folder = os.open(os.path.dirname(os.path.abspath(self.path)), os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            except OSError:
                pass  # not supported by all file systems
            finally:
                os.close(folder)

    def _check_header(self, line: bytes) -> None:
        header = self._header(line)
        if differing := list(differences(header.get("settings"), self.settings)):
            raise ResultsFileError(
                f"{self.path} belongs to a run with other settings: {'; '.join(differing)}; "
                "use the same settings to resume it, or choose another file"
            )

    def _header(self, line: bytes) -> dict[str, Any]:
        header = _parsed(line)
        if not isinstance(header, dict) or header.get("format") != _FORMAT:
            raise ResultsFileError(self._no_results(line))
        if header.get("version") != _VERSION:
            raise ResultsFileError(
                f"{self.path} has format version {short_repr(header.get('version'))}, but this gradellm reads version "
                f"{_VERSION}; resume the run with the gradellm that began it, or choose another file"
            )
        return header

    def _read(self, line: bytes, number: int, *, may_be_torn: bool) -> bool:
        """Parse a line. Return False for an incomplete line, if `may_be_torn` allows it."""
        entry = _parsed(line)
        if entry is None and may_be_torn:
            return False
        match entry:
            case {"id": str(example_id), "result": dict(record), **rest} if not rest:
                self.done.setdefault(example_id, record)
                self.failed.pop(example_id, None)
            case {"id": str(example_id), "error": str(error), **rest} if not rest:
                if example_id not in self.done:
                    self.failed[example_id] = error
            case _:
                raise ResultsFileError(
                    f"line {number} of {self.path} is not a result: {_quoted(line)}; the file was changed after it was "
                    "written. Remove the line to evaluate its example again, or choose another file"
                )
        return True

    def _no_results(self, line: bytes) -> str:
        return f"{self.path} is not a results file: it begins with {_quoted(line)}; choose another file"


def _settings_of(header: Mapping[str, Any]) -> dict[str, Any]:
    settings = header.get("settings")
    return settings if isinstance(settings, dict) else {}


def _lock(fd: int, path: str) -> None:
    """Make the file this run's alone until it is closed."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):  # a file system without locks
            return
        raise ResultsFileError(
            f"another run is writing {path}; wait until it has finished, or choose another file"
        ) from error


def _header_line(settings: Mapping[str, Any]) -> bytes:
    return _line({"format": _FORMAT, "version": _VERSION, "settings": dict(settings)}, "the settings")


def _line(value: object, what: str) -> bytes:
    try:
        return json.dumps(value, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ResultsFileError(
            f"{what} cannot be written as JSON: {error}; gradellm.serialization.to_plain turns dataclasses, tuples "
            "and NaN into what can"
        ) from error


def _parsed(line: bytes) -> object:
    """Return the JSON value of a line; None if it is malformed."""
    try:
        value: object = from_json(line, lone_surrogates=True)  # ids may contain lone surrogates
    except MalformedError:
        return None
    return value


_ABSENT = object()
_LATER_FIELD = "model.config_sha256"  # older servers do not send it; their runs may be resumed


def differences(was: object, now: object, path: str = "") -> Iterator[str]:
    """Yield the settings that differ, with their paths."""
    if isinstance(was, dict) and isinstance(now, dict):
        for name in dict.fromkeys((*was, *now)):
            inner = f"{path}.{name}" if path else name
            yield from differences(was.get(name, _ABSENT), now.get(name, _ABSENT), inner)
    elif path == _LATER_FIELD and any(value is _ABSENT or value == "" for value in (was, now)):
        return
    elif _as_text(was) != _as_text(now):
        yield f"{path or 'settings'} was {_as_text(was)}, and is {_as_text(now)} now"


def _as_text(value: object) -> str:
    return "absent" if value is _ABSENT else json.dumps(value, sort_keys=True)


def _quoted(line: bytes) -> str:
    text = line[:60].decode(errors="backslashreplace")
    return repr(text + "..." if len(line) > 60 else text)
