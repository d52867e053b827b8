"""Other programs of the project as processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gradellm import LocalServerError
from gradellm.local.processes import command, environment, require_server_extra
from support.client.processes import with_path


def test_openmp_threads_spin_briefly_unless_the_user_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    assert int(environment()["GOMP_SPINCOUNT"]) <= 10_000
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert environment()["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert "GOMP_SPINCOUNT" not in environment()


def test_a_module_runs_with_its_arguments_and_not_with_files_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    (tmp_path / "a.json").write_text('{"a": 1}')
    arguments = command("json.tool", ["--compact", "a.json"])
    run = subprocess.run(arguments, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
    assert run.stdout == '{"a":1}\n'


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_server_extra()
    monkeypatch.setattr("gradellm.local.processes._PACKAGES", ("json", "absent_1", "absent_2"))
    with pytest.raises(LocalServerError, match=r"needs absent_1, absent_2, .*pip install 'gradellm\[server\]'"):
        require_server_extra()


def test_a_replaced_process_has_printed_before(tmp_path: Path) -> None:
    """Text in the buffer of standard output would be lost with the process."""
    program = (
        "from gradellm.local.processes import exec_module\n"
        "print('before')\n"
        "exec_module('json.tool', ['a.json'], hosts_model=False)"
    )
    (tmp_path / "a.json").write_text("1")
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=with_path(PYTHONUNBUFFERED=""),
        capture_output=True,
        check=True,
    )
    assert run.stdout == b"before\n1\n"
