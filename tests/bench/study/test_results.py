"""A file of rows that a run continues."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradellm_bench.study.results import ResultsFile, read

SETTINGS = {"model": "m", "methods": ["a"], "soft": {"pis": (0.1, 0.5)}}


def test_rows_are_continued(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    assert ResultsFile(path, SETTINGS).ids() == set()
    ResultsFile(path, SETTINGS).add({"id": "x", "methods": {"a": {"auprc": 1 / 3}, "random": {}}})
    ResultsFile(path, SETTINGS).add({"id": "y"})
    assert ResultsFile(path, SETTINGS).ids() == {"x", "y"}
    (_, row, missing) = read(path)
    assert row == {"id": "x", "methods": {"a": {"auprc": 0.3333}, "random": {}}}
    assert missing == {"id": "y"}


def test_a_line_that_was_cut_off_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    file = ResultsFile(path, SETTINGS)
    file.ids()
    file.add({"id": "x"})
    with path.open("a") as opened:
        opened.write('{"id": "y", "meth')
    assert file.ids() == {"x"}
    file.add({"id": "y"})
    assert file.ids() == {"x", "y"}


def test_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    ResultsFile(path, SETTINGS).ids()
    with pytest.raises(ValueError, match="measured with other settings"):
        ResultsFile(path, SETTINGS | {"methods": ["b"]}).ids()
