"""--tools and --document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gradellm.cli import input_files, main
from gradellm.v1 import explainer_pb2 as pb

if TYPE_CHECKING:
    from client.conftest import FakeServer

Out = pytest.CaptureFixture[str]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "ü"}}]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS), encoding="utf-8")
    (tmp_path / "menu.txt").write_text("\nSoup is fünf coins.\n", encoding="utf-8")
    (tmp_path / "hours.txt").write_text("We open at nine.", encoding="utf-8")
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "bytes").write_bytes(b"a\xff")
    (tmp_path / "object.json").write_text("{}", encoding="utf-8")
    (tmp_path / "deep.json").write_text("[" * 10**6, encoding="utf-8")
    return tmp_path


def test_tools_imply_a_chat(fake: FakeServer, files: Path) -> None:
    assert main(["explain", "abc", "--tools", str(files / "tools.json"), "--target", fake.target]) == 0
    request: Any = fake.requests[-1]
    assert json.loads(request.input.tools) == TOOLS
    assert list(request.input.messages) == [pb.Message(role="user", content="abc")]


@pytest.mark.parametrize("chat", [False, True])
def test_documents_are_segments_before_the_prompt(fake: FakeServer, files: Path, chat: bool) -> None:
    arguments = ["--document", f"menu={files / 'menu.txt'}", "--document", f"hours={files / 'hours.txt'}"]
    arguments += ["--segment", "q=0:4", *(["--chat", "--system", "S"] if chat else [])]
    assert main(["explain", "What?", *arguments, "--target", fake.target]) == 0
    sent = fake.requests[-1].input  # type: ignore[attr-defined]
    text = sent.messages[1].content if chat else sent.prompt
    assert text == "menu:\nSoup is fünf coins.\n\nhours:\nWe open at nine.\n\nWhat?"
    places = {each.name: text[each.start : each.end] for each in sent.segments}
    assert places == {"menu": "Soup is fünf coins.", "hours": "We open at nine.", "q": "What"}
    assert {each.message if each.HasField("message") else None for each in sent.segments} == {1 if chat else None}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a", "--tools", "none.json"], "--tools: none.json cannot be read"),
        (["a", "--tools", "object.json"], "must have a JSON list"),
        (["a", "--tools", "deep.json"], "nested deeper"),
        (["a", "--tools", "menu.txt"], "not JSON"),
        (["a", "--document", "x=none.txt"], "--document: none.txt cannot be read"),
        (["a", "--document", "x=empty.txt"], "x is empty"),
        (["a", "--document", "x=bytes"], "not UTF-8 at byte 1"),
        (["a", "--document", "x=."], "cannot be read"),
        (["a", "--document", "x=menu.txt", "--document", "x=hours.txt"], "names two documents"),
        (["--prompt-ids", "1", "--document", "x=menu.txt"], "--document: needs PROMPT"),
        (["--prompt-ids", "1", "--tools", "tools.json"], "--tools: needs PROMPT"),
        (["a", "--citations"], "give each with --document"),
    ],
)
def test_what_is_refused(
    files: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(files)
    assert main(["explain", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_files_are_not_too_large(files: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_files, "MAX_BYTES", 10)
    assert main(["explain", "a", "--tools", str(files / "tools.json")]) == 2
    assert "is larger than 10 bytes, the limit" in capsys.readouterr().err
