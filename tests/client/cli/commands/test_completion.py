"""`gradellm completion`: completion scripts for shells."""

from __future__ import annotations

import pytest

from gradellm.cli import main

Out = pytest.CaptureFixture[str]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shells_complete_commands_and_flags(capsys: Out, shell: str) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "--max-new-tokens" in script
    assert "verify" in script


def test_without_shtab_its_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["completion", "bash"]) == 70
    assert "pip install 'gradellm[completion]'" in capsys.readouterr().err


def test_other_shells_are_refused(capsys: Out) -> None:
    with pytest.raises(SystemExit):
        main(["completion", "fish"])
    assert "choose from" in capsys.readouterr().err
