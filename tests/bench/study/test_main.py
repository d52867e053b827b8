"""The study's command: it continues a run, and its tables stand in a page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gradellm_bench.study.__main__ import main
from gradellm_bench.study.results import read

METHODS = ["knockout", "positive_no_sink"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {"id": str(i), "text": f"The old man had {thing} and a", "target": "dog", "rationale": [[4, 11]]}
        for i, thing in enumerate(("a cat", "a horse", "two birds"))
    ]
    (tmp_path / "lambada_rationales.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def measure(model: Path, data: Path, out: Path, *more: str) -> int:
    command = ["measure", "--model", str(model), "--data", str(data), "--datasets", "lambada", "--out", str(out)]
    return main([*command, "--methods", *METHODS, *more])


def test_a_run_is_continued_and_reported(
    model_path: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out, page = model_path("llama"), tmp_path / "out", tmp_path / "page.md"
    assert measure(model, data, out, "--rows", "2") == 0
    (path,) = out.glob("*.jsonl")
    before = path.read_text()
    assert measure(model, data, out) == 0
    assert path.read_text().startswith(before)
    first, *rows = read(path)
    assert first["settings"]["methods"] == METHODS
    assert [row["number"] for row in rows] == [0, 1, 2]
    page.write_text("<!-- begin: study auprc -->\n<!-- end: study auprc -->\n")
    assert main(["report", str(out), "--page", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "## auprc" in printed
    assert "## Mean rank" in printed
    assert "| knockout | " in page.read_text()


def test_formulas_are_measured_beside_methods(
    model_path: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["prototypes", "--model", str(model_path("llama")), "--data", str(data), "--datasets", "lambada"]
    command += ["--out", str(out), "--methods", "knockout_no_sink"]
    assert main([*command, "--formulas", "root", "replay_4"]) == 0
    assert "| root | " in capsys.readouterr().out
    (path,) = out.glob("*.jsonl")
    _, *rows = read(path)
    assert set(rows[0]["methods"]) == {"knockout_no_sink", "root", "replay_4", "random"}
    assert main(["report", str(out), "--against", "knockout_no_sink"]) == 0
    assert "| root | " in capsys.readouterr().out
    assert main([*command, "--formulas", "rot"]) == 70
    assert "'rot' is not a formula" in capsys.readouterr().err


def test_a_run_ends_in_time(model_path: Callable[[str], Path], data: Path, tmp_path: Path) -> None:
    assert measure(model_path("llama"), data, tmp_path / "out", "--hours", "0") == 0
    (path,) = (tmp_path / "out").glob("*.jsonl")
    assert len(list(read(path))) == 1  # the settings alone


def test_errors_are_said(
    model_path: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert measure(model_path("llama"), data, out, "--rows", "1") == 0
    assert measure(model_path("llama"), data, out, "--rows", "1", "--soft", "--samples", "2") == 0  # another file
    command = ["measure", "--model", str(model_path("llama")), "--data", str(data), "--datasets", "lambada"]
    assert main([*command, "--out", str(out), "--methods", "saliency"]) == 70
    assert "measured with other settings" in capsys.readouterr().err
    assert main([*command, "--out", str(out), "--methods", "papr"]) == 70
    assert "'papr' is not a method of the study" in capsys.readouterr().err
