"""`gradellm serve`, and other commands that replace this process with another program."""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest

from gradellm.cli import main
from gradellm.local.processes import environment

Out = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("command", "module"),
    [("serve", "gradellm_server"), ("bench", "gradellm_bench"), ("token", "gradellm_server.auth.tokens")],
)
def test_a_command_of_another_program_replaces_this_process(
    monkeypatch: pytest.MonkeyPatch, command: str, module: str
) -> None:
    became: list[tuple[list[str], dict[str, str]]] = []

    def execve(path: str, arguments: list[str], environment: dict[str, str]) -> None:
        assert path == sys.executable
        became.append((arguments, environment))
        raise SystemExit

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr("gradellm.local.processes._PACKAGES", ())
    with pytest.raises(SystemExit):
        main([command, "--help", "--model", "m"])
    assert importlib.util.find_spec(module) is not None
    assert became == [([sys.executable, "-P", "-m", module, "--help", "--model", "m"], environment())]


def test_serve_without_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    monkeypatch.setattr("gradellm.local.processes._PACKAGES", ("no_such_package",))
    assert main(["serve", "--help"]) == 70
    assert "pip install 'gradellm[server]'" in capsys.readouterr().err
