"""Files that are read again when they change, while the last usable version stays in use."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from gradellm_server.auth import file_watcher
from gradellm_server.auth.file_watcher import FileWatcher, SecurityFileError, read_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("first")
    return path


def loader(path: Path) -> Callable[[], str]:
    def load() -> str:
        text = read_file(path, "the file").decode()
        if text.startswith("broken"):
            raise SecurityFileError(f"{path} is broken")
        return text

    return load


def watcher(path: Path, check_seconds: float = 0.0) -> FileWatcher[str]:
    return FileWatcher([path], loader(path), check_seconds=check_seconds)


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(path: Path) -> None:
    loads = 0

    def load() -> int:
        nonlocal loads
        loads += 1
        return loads

    watched = FileWatcher([path], load, check_seconds=0)
    assert [watched.value, watched.value] == [1, 1]
    path.write_text("second")
    assert [watched.value, watched.value] == [2, 2]


def test_a_broken_or_missing_file_keeps_the_previous_version(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watched = watcher(path)
    with caplog.at_level(logging.WARNING):
        path.write_text("broken")
        assert watched.value == "first"
        path.unlink()
        assert [watched.value, watched.value] == ["first", "first"]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [  # one for each change
        f"Reload failed; keeping the previous version: {path} is broken",
        f"Reload failed; keeping the previous version: the file {path} cannot be read: No such file or directory",
    ]
    path.write_text("third")
    assert watched.value == "third"


def test_a_replaced_file_of_the_same_size_and_time_is_noticed(path: Path) -> None:
    """As by `cp --preserve` and `mv`: only the inode differs."""
    watched = watcher(path)
    new = path.with_suffix(".new")
    new.write_text("other")
    times = path.stat()
    os.utime(new, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(new, path)
    assert watched.value == "other"


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    """As Kubernetes updates mounted secrets: a link to the folder of the current version is replaced."""
    for version in ("a", "b"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "file").write_text(version)
    (tmp_path / "current").symlink_to("a")
    watched = watcher(tmp_path / "current" / "file")
    assert watched.value == "a"
    (tmp_path / "next").symlink_to("b")
    os.replace(tmp_path / "next", tmp_path / "current")
    assert watched.value == "b"


def test_files_are_checked_once_an_interval(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(file_watcher, "time", SimpleNamespace(monotonic=lambda: now))
    watched = watcher(path, check_seconds=2.0)
    path.write_text("second")
    now = 101.9
    assert watched.value == "first"
    now = 102.0
    assert watched.value == "second"


def test_a_change_during_the_load_is_found_next_time(path: Path) -> None:
    def load() -> str:
        text = path.read_text()
        if text == "second":
            path.write_text("third, written while the second was read")
        return text

    watched = FileWatcher([path], load, check_seconds=0)
    path.write_text("second")
    assert watched.value == "second"
    assert watched.value.startswith("third")


def test_the_first_load_raises_its_error(path: Path) -> None:
    path.write_text("broken")
    with pytest.raises(SecurityFileError, match="is broken"):
        watcher(path)
    with pytest.raises(SecurityFileError, match=r"the token file .*absent cannot be read: No such file"):
        read_file(path.with_name("absent"), "the token file")
