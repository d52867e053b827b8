"""Files and tables that `gradellm evaluate` writes and prints."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from client.evaluation.fake_evaluator import NOWHERE
from gradellm.cli import main
from gradellm.cli.evaluation_output import check_folder, command_line, write_tables, write_text
from gradellm.evaluation import figures
from gradellm.evaluation.examples import DataError
from gradellm.evaluation.results_file import ResultsFileError
from gradellm.evaluation.run_results import Output
from support.client.evaluation_runs import NS, evaluation_run

Out = pytest.CaptureFixture[str]


def test_a_folder_that_cannot_be_written(data: Path, capsys: Out) -> None:
    assert main(["evaluate", "--preset", "sst2", "--data", str(data), "--out", f"{data}/out", *NOWHERE]) == 65
    assert "cannot be created: Not a directory; choose another" in capsys.readouterr().err


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    write_text(path, "first")
    write_text(path, "naïve \ud800")  # names in the data may be anything
    assert path.read_text(encoding="utf-8") == "naïve \\ud800"
    (tmp_path / "folder").mkdir()
    for name in ("folder", "absent/a.md"):
        with pytest.raises(ResultsFileError, match=f"{name} cannot be written: "):
            write_text(tmp_path / name, "text")
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.md", "folder"]


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_folder(tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder").is_dir()
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ResultsFileError, match="folder cannot be written to; choose another"):
        check_folder(tmp_path / "new" / "folder")


def test_the_command_line_can_be_pasted_into_a_shell() -> None:
    args = argparse.Namespace(arguments=["evaluate", "--prompt-template", "It's {text}", "--out", "a b"])
    line = command_line(args)
    assert line.startswith("gradellm evaluate --prompt-template ")
    assert shlex.split(line)[1:] == args.arguments
    args.program = ("python", "-m", "x")
    assert command_line(args).startswith("python -m x evaluate ")


def flags(**changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"arguments": ["evaluate"], "format": "table", "color": "never", **changes})


def test_several_runs_have_a_figure_each(tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "save", lambda figure, path: path.touch())
    runs = [
        evaluation_run({"pi_soft_ns": NS, "deletion": NS}),
        evaluation_run({"pi_soft_ns": NS}, title="IMDb", preset="imdb"),
        evaluation_run({"deletion": NS}, title="BoolQ", preset="boolq"),  # without curves
    ]
    assert write_tables(flags(), runs, Output.of(str(tmp_path / "x.jsonl"))) == 0
    captured = capsys.readouterr()
    tables = [f"x.{name}.{kind}" for name in ("table1", "table4-m") for kind in ("md", "csv", "json")]
    drawings = [f"x.figure2-{name}.{kind}" for name in ("1-sst2", "2-imdb") for kind in ("png", "svg")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(tables + drawings)
    assert captured.err == f"\nwritten to {tmp_path}: {', '.join(tables + drawings)}\n"
    heading, models, _ = captured.out.split("\n", 2)
    assert heading == "AUC of the π-Soft-NS and π-Soft-NC curves (the paper's table 1)"
    assert models == "m; IMDb n = 2, SST2 n = 2; 95 % intervals by bootstrap over examples"


def test_without_a_folder_tables_are_printed_alone(capsys: Out) -> None:
    run = evaluation_run({"pi_soft_ns": NS}, title="a\x1b[2J")
    assert write_tables(flags(format="json"), [run], None) == 0
    captured = capsys.readouterr()
    assert (json.loads(captured.out)["command"], captured.err) == ("gradellm evaluate", "")
    assert write_tables(flags(color="always"), [run], None) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("\x1b[1mAUC of the π-Soft-NS and π-Soft-NC curves (the paper's table 1)\x1b[0m\n")
    assert "\x1b[2J" not in captured.out
    assert captured.err == ""


def test_runs_without_values_make_no_table() -> None:
    run = evaluation_run({"pi_soft_ns": {"random": [None]}})
    with pytest.raises(DataError, match="has no values to make a table of: no step could be measured"):
        write_tables(flags(), [run], None)
