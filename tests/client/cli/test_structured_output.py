"""The flags of structured output become keywords; files are read within limits."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gradellm import InvalidRequestError
from gradellm.cli import main
from gradellm.cli.structured_output import add_flags, keywords

if TYPE_CHECKING:
    from client.conftest import FakeServer


def parsed(*flags: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return keywords(parser.parse_args(flags))


def test_each_flag(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    (tmp_path / "grammar.lark").write_text('start: "é"', encoding="utf-8")
    assert parsed() == {}
    assert parsed("--schema", str(tmp_path / "schema.json")) == {"json_schema": '{"type": "object"}'}
    assert parsed("--grammar", str(tmp_path / "grammar.lark")) == {"grammar": 'start: "é"'}
    assert parsed("--json-object") == {"json_object": True}
    assert parsed("--regex", "a+") == {"regex": "a+"}
    assert parsed("--choice", "a", "--choice", "b") == {"choice": ["a", "b"]}


def test_a_schema_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"true")))
    assert parsed("--schema", "-") == {"json_schema": "true"}


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot be read"), (b"\xff", "cannot be read"), (b"x" * (1 << 20) + b"x", "1,048,576")],
)
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "schema.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidRequestError, match=words) as caught:
        parsed("--schema", str(path))
    assert [violation.field for violation in caught.value.violations] == ["schema"]


def test_explain_sends_a_schema(fake: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    flags = ["explain", "Once", "--schema", str(tmp_path / "schema.json"), "--format", "json", "--target", fake.target]
    main(flags)  # the fake server ignores what it does not know, which the client refuses
    request = fake.requests[0]
    assert request.structured_output.json_schema == '{"type": "object"}'  # type: ignore[attr-defined]
