"""The commands of the study of citations: a run is continued, and its table stands in a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gradellm import Client
from gradellm_bench.study.__main__ import main
from gradellm_bench.study.citation_commands import chats, row_id
from gradellm_engine import Engine
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer

METHODS = ["knockout_no_sink", "knockout_positive_no_sink"]


@pytest.fixture
def model(model_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkpoint, served by this process instead of one of its own."""
    path = model_path("demo")
    running = RunningServer(Engine.load(str(path)), ServerSettings(listen="127.0.0.1:0"))

    def local(*_: Any, **__: Any) -> Client:
        return Client(running.address)

    monkeypatch.setattr(Client, "local", local)
    yield path
    running.close()


def test_a_run_is_continued_and_reported(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, page = tmp_path / "citations", tmp_path / "page.md"
    command = ["citations", "--model", str(model), "--methods", *METHODS, "--out", str(out), "--seeds", "1"]
    assert main([*command, "--hours", "0"]) == 0
    (path,) = out.glob("*.jsonl")
    assert len(path.read_text().splitlines()) == 1  # the settings alone
    assert main(command) == 0
    first, *rows = map(json.loads, path.read_text().splitlines())
    assert first["settings"]["methods"] == METHODS
    assert [row["id"] for row in rows] == [row_id(*chat) for chat in chats(1)]
    given = [row for row in rows if row["asks"] == "two"]
    assert [len(row["sentences"]) for row in given] == [3, 3]
    before = path.read_text()
    assert main(command) == 0
    assert path.read_text() == before
    names = ("citations", "citations kinds", "citations boxes kinds")
    page.write_text("".join(f"<!-- begin: study {name} -->\n<!-- end: study {name} -->\n" for name in names))
    assert main(["citations-report", str(out), "--page", str(page)]) == 0
    assert f"| token | {METHODS[1]} | " in page.read_text()
    assert page.read_text().count(f"| {METHODS[1]} | {path.stem} | two | 2 |") == 1
    assert main(["citations-report", str(out), "--generator", "boxes", "--page", str(page)]) == 0
    assert page.read_text().count(f"| {METHODS[1]} | {path.stem} | two | 2 |") == 2
    assert f"passage is the fact: {path.stem}, {METHODS[0]}: " in capsys.readouterr().out


def test_chats_of_all_kinds_come_early() -> None:
    first = list(chats(2))[:8]
    assert {asks for _, asks, _ in first} == {"one", "two", "absent", "knowledge"}
    assert {seed for _, _, seed in first} == {0}
