"""Calls as XML."""

from __future__ import annotations

import json

import pytest

from client.parsers.support import read, streamed, tool, whole
from gradellm.parsers.qwen3_coder import Qwen3CoderParser

TOOLS = [
    tool("f", city={"type": "string"}, n={"type": "integer"}, tags={"anyOf": [{"type": "array"}]}, ref={"$ref": "#"})
]


def call(*parameters: tuple[str, str], name: str = "f") -> str:
    inside = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters)
    return f"<tool_call>\n<function={name}>\n{inside}</function>\n</tool_call>"


@pytest.mark.parametrize(
    ("text", "calls", "content"),
    [
        (call(("city", "Bonn"), ("n", "2")), [{"city": "Bonn", "n": 2}], ""),
        (call(("city", "12"), ("n", "two")), [{"city": "12", "n": "two"}], ""),
        (call(("city", 'a\n"b"\\\n')), [{"city": 'a\n"b"\\\n'}], ""),
        (call(("tags", '["x", 1]'), ("ref", "NaN")), [{"tags": ["x", 1], "ref": "NaN"}], ""),
        (call(("other", "[1]")), [{"other": "[1]"}], ""),
        (call(), [{}], ""),
        (f"Hi\n{call()}\n{call(('n', '3'))}\n", [{}, {"n": 3}], "Hi"),
        ("<function=f>\n<parameter=city>a</parameter></function>", [{"city": "a"}], ""),
        ("<tool_call><function=f><parameter=city>a<parameter=n>1</function>x", [{"city": "a", "n": 1}], "x"),
        (call(("city", "a < b </para")), [{"city": "a < b </para"}], ""),
        ("<tool_call>\n{}", [], None),
        ("<tool_call><function=f", [], None),
        ("<function=>", [], None),
        ("<function=f><parameter=city>Bo", [], None),
        ("<function=f>what?</function>", [], None),
        ("<function=f><parameter=a\n>", [], None),
    ],
)  # fmt: skip
def test_calls_and_text(text: str, calls: list[dict[str, object]], content: str | None) -> None:
    found, rest = read(Qwen3CoderParser(TOOLS), text)
    assert [json.loads(arguments) for _, arguments in found] == calls
    assert rest == (text if content is None else content)


def test_texts_are_sent_as_they_are_written() -> None:
    parser = Qwen3CoderParser(TOOLS)
    parser.push("<tool_call><function=f><parameter=city>\n")
    assert [delta.text for delta in parser.push("Bo\nn")] == ["Bo\\nn"]
    assert parser.push("\n") == []  # it may be the last
    assert streamed(Qwen3CoderParser(TOOLS), call(("city", "Bonn"))) == [
        ("name", "f"),
        ("arguments", '{"city": "Bonn"}'),
    ]


def test_places() -> None:
    text = f"Hi {call(('city', 'Bonn'), ('n', '2'))}"
    (found,) = whole(Qwen3CoderParser(TOOLS), text).calls
    assert text[slice(*found.name_span)] == "f"
    assert text[slice(*found.arguments_span)].startswith("<parameter=city>")
    assert {value.name: text[value.start : value.end] for value in found.values} == {"city": "\nBonn\n", "n": "\n2\n"}
    assert text[found.start : found.end] == text[3:]
