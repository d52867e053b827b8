"""Calls as JSON from the beginning of the answer."""

from __future__ import annotations

import pytest

from client.parsers.support import read, streamed
from gradellm.parsers.llama3_json import Llama3JsonParser

CALL = '{"name": "f", "parameters": {"a": {"b": 1}}}'
READ = ("f", '{"a": {"b": 1}}')


@pytest.mark.parametrize(
    ("text", "calls", "content"),
    [
        (CALL, [READ], ""),
        (f"\n{CALL}; {CALL}", [READ, READ], ""),
        (f"<|python_tag|>{CALL}", [READ], ""),
        (f"<|python_tag|>{CALL};<|python_tag|> {CALL}", [READ, READ], ""),
        (f"{CALL} and {CALL}", [READ], f" and {CALL}"),
        (f"So: {CALL}", [], None),
        ('{"name": "Bob", "age": 3}', [], None),
        ('{"name": "Bob"}', [], None),
        ('{"a": 1}\n', [], None),
        ("<|python_tag|>print(1)", [], None),
        ("<|py", [], None),
        (CALL[:-2], [], None),
    ],
)
def test_calls_and_text(text: str, calls: list[tuple[str, str]], content: str | None) -> None:
    assert read(Llama3JsonParser(), text) == (calls, text if content is None else content)


def test_text_is_not_held_back() -> None:
    parser = Llama3JsonParser()
    assert [delta.text for delta in parser.push("So {")] == ["So {"]
    assert streamed(Llama3JsonParser(), f"{CALL};x") == [("name", "f"), ("arguments", READ[1]), ("content", "x")]
