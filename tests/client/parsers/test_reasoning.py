"""Reasoning before an answer."""

from __future__ import annotations

import pytest

from gradellm.parsers.reasoning import ReasoningParser


@pytest.mark.parametrize(
    ("is_open", "text", "reasoning", "rest", "span"),
    [
        (False, "<think>a</think>b", "a", "b", (0, 16)),
        (False, "\n<think>\na\n</think>\n\nb", "\na\n", "\n\nb", (0, 19)),
        (False, "a<think>b</think>", "", "a<think>b</think>", (0, 0)),
        (False, " <thin", "", " <thin", (0, 0)),
        (False, "<think>a < b</thin", "a < b</thin", "", (0, 18)),
        (True, "a</think>b", "a", "b", (0, 9)),
        (True, " a", " a", "", (0, 2)),
        (True, "<think>a</think>b", "a", "b", (0, 16)),
        (True, "</think>b", "", "b", (0, 8)),
        (True, "", "", "", (0, 0)),
        (True, "a<tool_call>{", "a", "<tool_call>{", (0, 1)),
    ],
)
def test_the_beginning_of_an_answer(is_open: bool, text: str, reasoning: str, rest: str, span: tuple[int, int]) -> None:
    for chunks in ([text], list(text)):
        parser = ReasoningParser(is_open=is_open, ends=("<tool_call>",))
        found = [parser.push(chunk) if not parser.is_over else ("", chunk) for chunk in chunks]
        found.append(parser.finish())
        assert ("".join(part for part, _ in found), "".join(part for _, part in found)) == (reasoning, rest)
        assert parser.span == span
