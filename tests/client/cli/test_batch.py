"""Batches: prompts from a file, explanations to a file."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.rpc import code_pb2

from gradellm.cli import main
from gradellm.explanation.io import read_jsonl

if TYPE_CHECKING:
    from client.conftest import FakeServer

Out = pytest.CaptureFixture[str]


def written(path: Path, *rows: Any) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def test_prompts_come_out_as_explanations_in_their_order(fake: FakeServer, tmp_path: Path) -> None:
    rows = [{"prompt": f"Once {i}", "seed": i} for i in range(9)]
    file, out = written(tmp_path / "a.jsonl", *rows, ""), tmp_path / "out.jsonl"
    flags = ["--batch", file, "--max-new-tokens", "3", "--seed", "99", "--output", str(out), "--target", fake.target]
    assert main(["explain", *flags]) == 0
    assert len(list(read_jsonl(out))) == 9
    sent = sorted((request.input.prompt, request.seed, request.max_new_tokens) for request in fake.requests)  # type: ignore[attr-defined]
    assert sent == [(f"Once {i}", i, 3) for i in range(9)]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_completions_and_standard_streams(fake: FakeServer, capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    line = json.dumps({"messages": [["user", "Hi"]], "completion": " there", "segments": {"a": [0, 0, 1]}})
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(line.encode())))
    assert main(["attribute", "--batch", "-", "--method", "saliency", "--target", fake.target]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "gradellm.explanation"
    (request,) = fake.requests
    assert request.attribution.method == "saliency"  # type: ignore[attr-defined]
    assert request.completion == " there"  # type: ignore[attr-defined]


def test_failed_lines_are_reported_and_other_lines_written(fake: FakeServer, tmp_path: Path, capsys: Out) -> None:
    file, out = written(tmp_path / "a.jsonl", {"prompt": "a"}, "", {"prompt": "b"}), tmp_path / "out.jsonl"
    fake.fail(code_pb2.INVALID_ARGUMENT, "too long")
    assert main(["explain", "--batch", file, "--output", str(out), "--no-retry", "--target", fake.target]) == 1
    errors = capsys.readouterr().err
    assert f"{file}:1: " in errors
    assert f"{file}:3: " in errors
    assert "0 explanations, 2 failed" in errors
    assert out.read_text() == ""


@pytest.mark.parametrize(
    ("rows", "flags", "code", "words"),
    [
        (["{"], [], 65, "a.jsonl:1: this is not JSON"),
        (["[1]"], [], 65, "a.jsonl:1: must be an object"),
        ([{"prompt": "a"}, {"colour": 1}], [], 65, "a.jsonl:2: "),
        ([{"prompt": "a"}, {"prompt": "a", "seed": "x"}], [], 65, "a.jsonl:2: seed"),
        ([{"prompt": "a"}], ["--concurrency", "0"], 2, "--concurrency: must be 1 or more"),
        ([{"prompt": "a"}], ["--output", "x.json"], 2, "must end in .jsonl"),
        ([{"prompt": "a"}], ["--format", "json"], 2, "cannot be combined with --batch"),
        ([{"prompt": "a"}], ["words"], 2, "cannot be combined with --batch"),
    ],
)
def test_invalid_input_is_refused_before_sending(
    fake: FakeServer, tmp_path: Path, capsys: Out, rows: list[Any], flags: list[str], code: int, words: str
) -> None:
    file = written(tmp_path / "a.jsonl", *rows)
    assert main(["explain", *flags, "--batch", file, "--target", fake.target]) == code
    assert words in capsys.readouterr().err
    assert fake.requests == []


def test_a_file_that_is_not_there(fake: FakeServer, tmp_path: Path, capsys: Out) -> None:
    assert main(["explain", "--batch", str(tmp_path / "absent.jsonl"), "--target", fake.target]) == 65
    assert "absent.jsonl cannot be read: No such file" in capsys.readouterr().err
