"""`python -m gradellm_bench.capacity`: plans, and refusals in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.capacity.conftest import DOCS
from gradellm_bench.capacity.__main__ import main


def test_the_command_prints_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    passes, wire = str(DOCS / "capacity-h100.json"), str(DOCS / "capacity-wire.json")
    command = ["plan", "--passes", passes, "--load", "2", "--prompt-tokens", "64", "--answer-tokens", "8"]
    assert main([*command, "--max-new-tokens", "8", "--wire", wire, "--gpu-hour", "3"]) == 0
    output = capsys.readouterr().out
    assert "NVIDIA H100" in output
    assert "| 2 |" in output
    assert "a DNS response over UDP" in output


def test_invalid_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text("{}")
    assert main(["plan", "--passes", str(tmp_path / "a.json"), "--load", "2"]) == 2
    assert "a.json is not what" in capsys.readouterr().err
