"""`gradellm follow`: a line for each logged answer, continued where it was interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from client.conftest import FakeServer
from gradellm import Explanation
from gradellm.cli import main

RECORD: dict[str, Any] = {
    "request": {"messages": [{"role": "user", "content": "Hi"}]},
    "response": {
        "prompt_token_ids": [1],
        "choices": [{"index": index, "message": {"content": "a"}, "token_ids": [5 + index]} for index in range(2)],
    },
}


def log(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def follow(fake: FakeServer, source: str, output: Path, *flags: str) -> int:
    return main(["follow", "--from", source, "--output", str(output), "--target", fake.target, "--no-retry", *flags])


def test_explains_every_choice(fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "explained.jsonl"
    assert follow(fake, log(tmp_path / "log.jsonl", RECORD), output, "--upstream-dtype", "float32") == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["line"], row["choice"], row["ids"], row["verdict"]) for row in rows] == [
        (1, 0, "given", "unknown"),  # of a server that says nothing at the end
        (1, 1, "given", "unknown"),
    ]
    assert [token.id for token in Explanation.from_json(json.dumps(rows[1]["explanation"])).tokens] == [6]
    assert "2 unknown; 0 were there already" in capsys.readouterr().err


def test_continues(fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = log(tmp_path / "log.jsonl", RECORD, RECORD), tmp_path / "explained.jsonl"
    assert follow(fake, source, output) == 0
    whole = output.read_text().splitlines(keepends=True)
    output.write_text("".join(whole[:3]) + whole[3][:20])  # interrupted while it wrote
    sent = len(fake.followed)
    assert follow(fake, source, output) == 0
    assert [json.loads(line)["choice"] for line in output.read_text().splitlines()] == [0, 1, 0, 1]
    assert len(fake.followed) == sent + 3  # one answer: start, append, finish
    assert "1 unknown; 3 were there already" in capsys.readouterr().err
    assert follow(fake, source, output) == 0
    assert "nothing new; 4 were there already" in capsys.readouterr().err


def test_a_record_that_cannot_be_explained(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = {"request": {}, "response": {"error": {"message": "too long"}}}
    output = tmp_path / "explained.jsonl"
    assert follow(fake, log(tmp_path / "log.jsonl", failed, RECORD), output) == 1
    assert len(output.read_text().splitlines()) == 2
    assert "log.jsonl:1: the response is an error" in capsys.readouterr().err


def test_another_model(fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.verdict = 4
    assert follow(fake, log(tmp_path / "log.jsonl", RECORD), tmp_path / "explained.jsonl") == 1
    assert "log.jsonl:1: choice 0 was written by another model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "flags", "code", "message"),
    [
        ("{\n", (), 65, "log.jsonl:1:"),
        ("[1]\n", (), 65, 'must be an object, such as {"request"'),
        ("", ("--concurrency", "0"), 2, "--concurrency: must be 1 or more"),
        ("", ("--chunk-size", "x"), 2, "invalid int value"),
    ],
)
def test_wrong_turns(
    fake: FakeServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str,
    flags: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    source = tmp_path / "log.jsonl"
    source.write_text(content)
    try:
        found = follow(fake, str(source), tmp_path / "explained.jsonl", *flags)
    except SystemExit as error:  # argparse's
        found = int(error.code or 0)
    assert found == code
    assert message in capsys.readouterr().err


def test_outputs(fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = log(tmp_path / "log.jsonl", RECORD)
    assert follow(fake, source, tmp_path / "explained.txt") == 2
    assert "must end in .jsonl" in capsys.readouterr().err
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "Once"}\n')
    assert follow(fake, source, other) == 65
    assert "is no line of `gradellm follow`" in capsys.readouterr().err
    assert other.read_text() == '{"prompt": "Once"}\n'
