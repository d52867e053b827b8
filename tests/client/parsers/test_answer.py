"""Every parser: any split of a text gives what the text at once gives."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradellm.parsers.answer import AnswerParser
from gradellm.parsers.deltas import Answer, Delta
from gradellm.parsers.reasoning import ReasoningParser
from gradellm.parsers.registry import CALL_PARSERS, call_parser, reasoning_parser

PIECES = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<function=", "f>", "</function>", "<parameter=", "city>",
    "</parameter>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", '{"name": "f", ',
    '"arguments": ', '{"city": "B\\"onn"}',
    '"parameters": ', "{", "}", "[", "]", '"', ",", ":", ";", "\n", " ", "name", "12", "\\", "é", "<", "true", "null",
    '"name"', '"f"', '"{\\"a\\": 1}"', '{"name": "g", "arguments": {}}', "Hello",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)
PROPERTIES = {"city": {"type": "string"}, "n": {"type": "integer"}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"properties": PROPERTIES}}}]


def parsed(parser: AnswerParser, *chunks: str) -> tuple[list[Delta], Answer]:
    deltas = [delta for chunk in chunks for delta in parser.push(chunk)]
    return deltas + parser.finish(), parser.answer()


def make(name: str | None, reasoning: str = "none", prompt: str = "") -> AnswerParser:
    calls = call_parser(name, TOOLS)
    return AnswerParser(calls, reasoning_parser(reasoning, prompt, calls))


def streamed(deltas: list[Delta]) -> dict[Any, str]:
    """The text of each kind, and of each call."""
    found: dict[Any, str] = {}
    for delta in deltas:
        key = delta.kind if delta.call is None else (delta.kind, delta.call)
        found[key] = found.get(key, "") + delta.text
    return found


def chunked(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[start:end] for start, end in pairwise(places)]


@settings(max_examples=400, deadline=None)
@given(
    name=st.sampled_from([None, *CALL_PARSERS]),
    reasoning=st.sampled_from(["none", "qwen3", "deepseek_r1"]),
    text=TEXTS,
    cuts=st.lists(st.integers(0, 400), max_size=30),
)
def test_chunks_change_nothing(name: str | None, reasoning: str, text: str, cuts: list[int]) -> None:
    whole, answer = parsed(make(name, reasoning), text)
    pieces, same = parsed(make(name, reasoning), *chunked(text, cuts))
    assert same == answer
    assert streamed(pieces) == streamed(whole)
    letters, same = parsed(make(name, reasoning), *text)
    assert same == answer
    assert streamed(letters) == streamed(whole)


@settings(max_examples=400, deadline=None)
@given(name=st.sampled_from([None, *CALL_PARSERS]), text=TEXTS)
def test_the_answer_has_the_whole_text(name: str | None, text: str) -> None:
    deltas, answer = parsed(make(name), text)
    found = streamed(deltas)
    for call in answer.calls:
        assert json.loads(call.arguments) is not None
        assert call.start <= call.name_span[0] < call.name_span[1] <= call.end
        assert text[slice(*call.name_span)].strip().startswith(call.name[:1])
        assert all(call.start < value.start <= value.end <= call.end for value in call.values)
    if not answer.calls:
        assert answer.content == text
    if not any(isinstance(key, tuple) for key in found):
        assert found.get("content", "") == text
    names = [delta for delta in deltas if delta.kind == "name"]
    assert [delta.call for delta in names] == list(range(len(names)))
    seen: set[int | None] = set()
    for delta in deltas:  # the name comes first, and once
        if delta.kind == "arguments":
            assert delta.call in seen
        if delta.kind == "name":
            seen.add(delta.call)


@pytest.mark.parametrize("name", [*CALL_PARSERS])
@pytest.mark.parametrize(
    "unit",
    [
        " ",
        "<",
        "<tool_call>",
        '<tool_call>{"a',
        '{"a":',
        "[TOOL_CALLS]",
        "[TOOL_CALLS]f",
        '<tool_call>{"name": "f", "arguments": {',
        "[",
        "\\",
        "<function=",
        "<function=f><parameter=",
        "<function=f><parameter=city>",
        "\n",
        '{"name": "f", "parameters": {',
    ],
)
def test_the_work_is_linear(name: str, unit: str) -> None:
    def calls(count: int) -> int:
        """The number of Python's and C's functions that are called: the same in every run."""
        number = 0

        def counting(frame: object, event: str, argument: object) -> None:
            nonlocal number
            number += event in ("call", "c_call")

        parser, text = make(name, "qwen3"), unit * count
        sys.setprofile(counting)
        try:
            parsed(parser, text)
        finally:
            sys.setprofile(None)
        return number

    small = 2_000 // len(unit)
    assert calls(4 * small) < 4.2 * calls(small)


def test_reasoning_text_and_calls() -> None:
    text = '<think>Hm.</think>\nI look.\n<tool_call>\n{"name": "f", "arguments": {"n": 2}}\n</tool_call>'
    deltas, answer = parsed(make("hermes", "qwen3"), text)
    assert streamed(deltas) == {
        "reasoning": "Hm.", "content": "\nI look.", ("name", 0): "f", ("arguments", 0): '{"n": 2}',
    }  # fmt: skip
    assert (answer.content, answer.reasoning) == ("\nI look.", "Hm.")
    assert text[slice(*answer.reasoning_span)] == "<think>Hm.</think>"
    assert text[answer.content_start :].startswith("\nI look.")
    (call,) = answer.calls
    assert text[slice(*call.name_span)] == "f"
    assert text[slice(*call.arguments_span)] == '{"n": 2}'
    assert [(value.name, text[value.start : value.end]) for value in call.values] == [("n", "2")]
    assert text[call.start : call.end].startswith("<tool_call>")
    assert text[call.start : call.end].endswith("</tool_call>")


def test_a_call_ends_reasoning() -> None:
    text = 'Hm. <tool_call>{"name": "f", "arguments": {}}</tool_call>'
    _, answer = parsed(make("hermes", "deepseek_r1"), text)
    assert answer.reasoning == "Hm. "
    assert [call.name for call in answer.calls] == ["f"]
    assert text[slice(*answer.calls[0].name_span)] == "f"


def test_without_parsers_text_is_text() -> None:
    parser = AnswerParser(reasoning=ReasoningParser(is_open=False))
    deltas, answer = parsed(parser, "a", " <tool_call>")
    assert streamed(deltas) == {"content": "a <tool_call>"}
    assert answer == Answer("a <tool_call>", "", (), 0, (0, 0))
