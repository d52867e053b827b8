"""The file that a run's results are kept in: a line of JSON for each example, so that a stopped run can be resumed.

    {"format": "gradellm evaluation", "version": 1, "settings": {...}}     the run's identity
    {"id": "dev-7", "result": {...}}                                       an example that is done
    {"id": "dev-8", "error": "..."}                                        one that failed; a later line may say better

A line is on the disk before `append` returns, and nothing is ever changed but the end. Whenever a process ends, then,
only the last line can be incomplete: it is cut off when the file is opened again, and its example is done once more.
Any other line that cannot be read is an error, for a file that was changed by something else is no result.

Two runs cannot write one file: it is locked while it is open, where the system and the file system have locks.
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
from gradellm.serialization import MalformedError, from_json, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

__all__ = ["Results", "ResultsFile", "ResultsFileError", "differences", "read_results", "write_results"]

_FORMAT, _VERSION = "gradellm evaluation", 1
_BEGINNING = json.dumps({"format": _FORMAT})[:-1].encode()


class ResultsFileError(GradellmError):
    """A results file cannot be opened, read or written, or belongs to another run."""


@dataclass(frozen=True)
class Results:
    """What a results file holds."""

    settings: Mapping[str, Any]
    done: Mapping[str, Any]
    """The records of examples that are done, by id."""
    failed: Mapping[str, str]
    """What went wrong with the others that were tried."""


def read_results(path: str | os.PathLike[str]) -> Results:
    """Read a results file, whatever its settings; it is not changed, and may be growing. Raises ResultsFileError."""
    file = ResultsFile(path, {})
    try:
        with open(file.path, "rb") as opened:
            data = opened.read()
    except OSError as error:
        raise ResultsFileError(f"the results file {file.path} cannot be read: {error.strerror}") from error
    return file.read_only(data)


def write_results(path: str | os.PathLike[str], results: Results) -> None:
    """Write a results file at once, in the order of ids: whole, or not at all. What stands there is replaced.

    Raises ResultsFileError.
    """
    path = Path(path)
    lines = [_header_line(results.settings)]
    for one in sorted({*results.done, *results.failed}):
        if one in results.done:
            lines.append(_line({"id": one, "result": results.done[one]}, f"the result of example {one}"))
        else:
            lines.append(_line({"id": one, "error": results.failed[one]}, f"the failure of example {one}"))
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ResultsFileError(f"the results file {path} cannot be written: {error.strerror}") from error


class ResultsFile:
    """A run's results, on disk and in memory.

    with ResultsFile("out.jsonl", settings={"model": ..., "methods": [...]}) as results:
        for example in examples:
            if example.id not in results.done:
                results.append(example.id, evaluate(example))

    `settings` is all that decides what comes out, as JSON can hold it. A file that exists is resumed if its settings
    are the same, else refused. One thread may use it. Raises ResultsFileError.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.path = os.fspath(path)
        self.settings: dict[str, Any] = json.loads(_line(dict(settings), "the settings"))
        self.done: dict[str, Any] = {}
        """The records of examples that are done, by id, as one reads them from the file."""
        self.failed: dict[str, str] = {}
        """What went wrong with examples that failed, and have not been done since."""
        self.cut_bytes = 0
        """The length of an incomplete last line that opening the file cut off."""
        self._fd: int | None = None
        self._end = 0  # where the last complete line ends

    def __enter__(self) -> Self:
        if self._fd is not None:
            raise ResultsFileError(f"{self.path} is open already")
        self.done, self.failed, self.cut_bytes = {}, {}, 0
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise ResultsFileError(
                f"the results file {self.path} cannot be opened: {error.strerror}; its folder must exist, and both "
                "must allow writing"
            ) from error
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise ResultsFileError(f"{self.path} is no regular file, so that no results can be kept in it")
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
        """Keep what came out of an example, on disk before this returns.

        Returns False, and writes nothing, where the example is done already: it is counted once.
        """
        if example_id in self.done:
            return False
        line = _line({"id": example_id, "result": dict(record)}, f"the result of example {example_id}")
        self._write(line)
        self.done[example_id] = json.loads(line)["result"]
        self.failed.pop(example_id, None)
        return True

    def append_failure(self, example_id: str, error: str) -> bool:
        """Keep why an example failed. It is not done by that: a resumed run may try it again.

        Returns False, and writes nothing, where the example is done already.
        """
        if example_id in self.done:
            return False
        self._write(_line({"id": example_id, "error": error}, f"the failure of example {example_id}"))
        self.failed[example_id] = error
        return True

    # --- writing ------------------------------------------------------------------------------------------------------

    def _write(self, line: bytes) -> None:
        """Put a line at the end, whole or not at all."""
        if self._fd is None:
            raise ResultsFileError(f"{self.path} is not open; write to it inside `with ResultsFile(...) as results:`")
        try:
            os.lseek(self._fd, self._end, os.SEEK_SET)
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            os.fsync(self._fd)
        except BaseException as error:  # an interrupt, too, must leave whole lines
            self._cut_off()
            if isinstance(error, OSError):
                raise ResultsFileError(
                    f"the results file {self.path} cannot be written: {error.strerror}; it holds all that came before: "
                    "make room, and resume the run"
                ) from error
            raise
        self._end += len(line)

    def _cut_off(self) -> None:
        """Take away what follows the last complete line."""
        if self._fd is None:
            return
        try:
            os.ftruncate(self._fd, self._end)
            os.fsync(self._fd)
        except OSError:
            self._close()  # another line would stand behind half a one; opening the file again cuts that off

    def _close(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    # --- reading ------------------------------------------------------------------------------------------------------

    def read_only(self, data: bytes) -> Results:
        """Take up what a file holds, without opening it for more."""
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
        """Take up what the file holds: nothing, or a run's lines."""
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
        if tail and self._read(tail, len(lines) + 1, may_be_torn=True):  # complete but for its line's end
            self._write(tail + b"\n")
            return
        self.cut_bytes = len(data) - self._end
        if self.cut_bytes:
            self._cut_off()

    def _begin(self, found: bytes) -> None:
        """Write the header of a new file, or of one whose run was stopped while it did so."""
        if not _BEGINNING.startswith(found[: len(_BEGINNING)]):
            raise ResultsFileError(self._no_results(found))
        self._cut_off()
        self._write(_header_line(self.settings))
        if hasattr(os, "O_DIRECTORY"):  # that the file is there is kept in its folder
            folder = os.open(os.path.dirname(os.path.abspath(self.path)), os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            except OSError:
                pass  # some file systems do not do it
            finally:
                os.close(folder)

    def _check_header(self, line: bytes) -> None:
        header = self._header(line)
        if differing := list(differences(header.get("settings"), self.settings)):
            raise ResultsFileError(
                f"{self.path} belongs to a run with other settings: {'; '.join(differing)}; "
                "give the same settings to resume it, or choose another file"
            )

    def _header(self, line: bytes) -> dict[str, Any]:
        header = _parsed(line)
        if not isinstance(header, dict) or header.get("format") != _FORMAT:
            raise ResultsFileError(self._no_results(line))
        if header.get("version") != _VERSION:
            raise ResultsFileError(
                f"{self.path} has version {shown(header.get('version'))} of the format, and this gradellm reads "
                f"{_VERSION}; resume it with the gradellm that began it, or choose another file"
            )
        return header

    def _read(self, line: bytes, number: int, *, may_be_torn: bool) -> bool:
        """Take up a line; False if it is torn, and may be."""
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
                    f"line {number} of {self.path} is no result: {_shown(line)}; the file was changed after it was "
                    "written. Take that line out to do its example anew, or choose another file"
                )
        return True

    def _no_results(self, line: bytes) -> str:
        return f"{self.path} holds something else than results: it begins with {_shown(line)}; choose another file"


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
            f"another run is writing {path}; wait until it has ended, or choose another file"
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
    """Return what the line holds, None if it is no JSON that is read."""
    try:
        value: object = from_json(line, half_pairs=True)  # ids are the caller's own
    except MalformedError:
        return None
    return value


_ABSENT = object()
_TOLD_LATER = "model.config_sha256"  # by servers of later versions: a run that an earlier one began may go on


def differences(was: object, now: object, path: str = "") -> Iterator[str]:
    """Say which settings differ, by their paths."""
    if isinstance(was, dict) and isinstance(now, dict):
        for name in dict.fromkeys((*was, *now)):
            inner = f"{path}.{name}" if path else name
            yield from differences(was.get(name, _ABSENT), now.get(name, _ABSENT), inner)
    elif path == _TOLD_LATER and any(one is _ABSENT or one == "" for one in (was, now)):
        return
    elif _said(was) != _said(now):
        yield f"{path or 'settings'} was {_said(was)}, and is {_said(now)} now"


def _said(value: object) -> str:
    return "absent" if value is _ABSENT else json.dumps(value, sort_keys=True)


def _shown(line: bytes) -> str:
    text = line[:60].decode(errors="backslashreplace")
    return repr(text + "..." if len(line) > 60 else text)
