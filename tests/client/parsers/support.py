"""One answer through one parser."""

from __future__ import annotations

from typing import Any

from gradellm.parsers.answer import AnswerParser
from gradellm.parsers.base import CallParser
from gradellm.parsers.deltas import Answer


def read(parser: CallParser, text: str) -> tuple[list[tuple[str, str]], str]:
    """The names and arguments of the calls in an answer, and its content."""
    answer = whole(parser, text)
    return [(call.name, call.arguments) for call in answer.calls], answer.content


def whole(parser: CallParser, text: str) -> Answer:
    answers = AnswerParser(parser)
    answers.push(text)
    answers.finish()
    return answers.answer()


def streamed(parser: CallParser, text: str) -> list[tuple[str, str]]:
    """Kind and text of each delta, a character at a time, neighbours joined."""
    found: list[tuple[str, str]] = []
    deltas = [delta for character in text for delta in parser.push(character)] + parser.finish()
    for delta in deltas:
        if found and found[-1][0] == delta.kind and delta.kind != "name":
            found[-1] = (delta.kind, found[-1][1] + delta.text)
        else:
            found.append((delta.kind, delta.text))
    return found


def tool(name: str, **properties: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}
