"""`gradellm bench` on a tiny model: all parts are reported, and invalid settings end with one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.conftest import OWN_BACKENDS
from gradellm_bench.__main__ import main
from gradellm_engine.demo_model import CHECKPOINT


@pytest.mark.slow
def test_standard_error_stays_empty() -> None:
    """In a separate process: libraries print warnings about each other when the interpreter exits."""
    measure = ["--parts", "latency", "--prompts", "16", "--new-tokens", "2", "--rounds", "1", "--backends", "generate"]
    for arguments, status, message in (
        (["--model", str(CHECKPOINT), *measure], 0, ""),
        (["--model", "/nowhere", *measure], 2, "error: there is no folder '/nowhere'"),
    ):
        command = [sys.executable, "-m", "gradellm_bench", *arguments]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == status
        assert run.stderr.startswith(message)
        assert run.stderr.count("\n") == bool(message)
        assert ("latency" in run.stdout.lower() or "token" in run.stdout) == (status == 0)


def test_a_backend_that_cannot_run_a_family_is_left_out_or_refused(
    model_path: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(model_path("gemma2")), "--parts", "latency", "--prompts", "8", "--rounds", "1"]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "| plain " in output
    assert "recompute" not in output
    with pytest.raises(SystemExit):
        main([*arguments, "--backends", "recompute"])
    assert "recompute cannot run a model of the family gemma2" in capsys.readouterr().err


def test_all_parts_run_and_are_reported(shape: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_file, plot_file = tmp_path / "figures.json", tmp_path / "figures.png"
    pytest.importorskip("matplotlib")
    arguments = ["--shape", shape, "--prompts", "16", "32", "--new-tokens", "32", "--rounds", "1", "--requests", "8"]
    arguments += ["--concurrency", "1", "2", "--backends", *OWN_BACKENDS]
    assert main([*arguments, "--json", str(json_file), "--plot", str(plot_file)]) == 0
    output = capsys.readouterr().out
    assert "prompt of 16 tokens" in output
    assert all(f"| {backend} " in output for backend in OWN_BACKENDS)
    for words in ("random tiny", "GB/s", "tokens per second", "1,500 tokens is admitted", "second turn", "Peak memory"):
        assert words in output
    figures = json.loads(json_file.read_text())
    assert {latency["backend"] for latency in figures["latencies"]} == set(OWN_BACKENDS)
    assert figures["memory"]["requests"] == 8
    assert plot_file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompts", "4090"], "the part latency needs 4154 tokens, the model's context is 4096"),
        (["--new-tokens", "40"], "40 are not whole chunks of chunked(16), chunked(32)"),
        (["--rounds", "0"], "at least 1"),
        (["--new-tokens", "1"], "at least 2"),
        (["--device", "abacus"], "abacus"),
        (["--backends", "magic"], "magic"),
        (["--model", "/no/such/folder"], "/no/such/folder"),
        (["--plot", "figures.txt"], "must end in .png or .svg"),
        (["--json", "/no/such/folder/file.json"], "/no/such/folder"),
    ],
)
def test_an_invalid_setting_ends_with_one_line(
    shape: str, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    try:
        status = main(["--shape", shape, *arguments])
    except SystemExit as ended:
        status = int(ended.code or 0)
    assert status == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: " in last
    assert words in last


def test_the_deprecated_flag_warns_and_still_works(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--ways", "chunked(16)", "--new-tokens", "40"])
    error = capsys.readouterr().err
    assert "--ways is deprecated" in error
    assert error.endswith("40 are not whole chunks of chunked(16)\n")
