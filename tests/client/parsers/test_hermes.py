"""Calls between tags."""

from __future__ import annotations

import pytest

from client.parsers.support import read, streamed, whole
from gradellm.parsers.hermes import HermesParser

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bonn", "at": [1, {"h": "}"}]}}\n</tool_call>'
ARGUMENTS = '{"city": "Bonn", "at": [1, {"h": "}"}]}'


@pytest.mark.parametrize(
    ("text", "calls", "content"),
    [
        (CALL, [("get_weather", ARGUMENTS)], ""),
        (f"I look.\n{CALL}\n", [("get_weather", ARGUMENTS)], "I look."),
        (f"{CALL}\n{CALL} done", [("get_weather", ARGUMENTS)] * 2, " done"),
        (f"{CALL}{CALL.removesuffix('</tool_call>')}", [("get_weather", ARGUMENTS)] * 2, ""),
        (CALL.removesuffix("</tool_call>") + CALL, [("get_weather", ARGUMENTS)] * 2, ""),
        ('<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', [("f", '{"a": 1}')], ""),
        ('<tool_call>{"name": "f"}</tool_call>', [("f", "{}")], ""),
        ('<tool_call>{"name": "f", "arguments": null}</tool_call>', [("f", "{}")], ""),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', [("f", '{"a": 1}')], ""),
        ('<tool_call>{"id": [1], "name": "f\\u00fc", "parameters": {}}</tool_call>', [("fü", "{}")], ""),
        ("<tool_call><tool_call>" + CALL.removeprefix("<tool_call>"), [("get_weather", ARGUMENTS)], "<tool_call>"),
        # Malformed calls are text.
        ('<tool_call>{"name": "f", "arguments": {"a": 1', [], '<tool_call>{"name": "f", "arguments": {"a": 1'),
        ("a < b, and <tool", [], "a < b, and <tool"),
        ("<tool_call>f(1)</tool_call>", [], "<tool_call>f(1)</tool_call>"),
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', [], None),
        ('<tool_call>{"name": "", "arguments": {}}</tool_call>', [], None),
        ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', [], None),
        ('<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>', [], None),
        ('<tool_call>{"name": "f", "arguments": {"a": nul}}</tool_call>', [], None),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}, "parameters": {}}</tool_call>', [], None),
        ('<tool_call>{"arguments": {}}</tool_call> \n', [], None),
        ("  \n", [], None),
    ],
)
def test_calls_and_text(text: str, calls: list[tuple[str, str]], content: str | None) -> None:
    assert read(HermesParser(), text) == (calls, text if content is None else content)


def test_a_name_comes_whole_and_before_arguments() -> None:
    assert streamed(HermesParser(), f"Hi \n{CALL}\n{CALL}") == [
        ("content", "Hi"),
        ("name", "get_weather"),
        ("arguments", ARGUMENTS),
        ("name", "get_weather"),
        ("arguments", ARGUMENTS),
    ]


def test_arguments_are_sent_as_they_are_written() -> None:
    parser = HermesParser()
    assert parser.push('<tool_call>{"name": "f", "arguments"') == []
    sent = parser.push(': {"city": "B')
    assert [(delta.kind, delta.text) for delta in sent] == [("name", "f"), ("arguments", '{"city": "B')]
    assert [delta.text for delta in parser.push("onn")] == ["onn"]


def test_a_broken_call_that_was_begun_is_sent_as_it_is() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": }}</tool_call> so'
    assert streamed(HermesParser(), text) == [("name", "f"), ("arguments", '{"a": }'), ("content", " so")]
    assert read(HermesParser(), text) == ([], text)
    mixed = f'{CALL}<tool_call>{{"name": "f", "arguments": {{]}}</tool_call>'
    assert read(HermesParser(), mixed) == ([("get_weather", ARGUMENTS)], mixed.removeprefix(CALL))


def test_places_of_names_and_arguments() -> None:
    text = f"I look.\n{CALL}"
    (call,) = whole(HermesParser(), text).calls
    assert text[slice(*call.name_span)] == "get_weather"
    assert text[slice(*call.arguments_span)] == ARGUMENTS
    assert {value.name: text[value.start : value.end] for value in call.values} == {
        "city": '"Bonn"',
        "at": '[1, {"h": "}"}]',
    }
    assert text[call.start : call.end] == CALL
