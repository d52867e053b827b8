"""Parsers by name, and by the prompt."""

from __future__ import annotations

import pytest

from gradellm.parsers.registry import REASONING_PARSERS, call_parser, reasoning_parser


@pytest.mark.parametrize(
    ("name", "prompt", "thought"),
    [
        ("none", "<think>", None),
        ("qwen3", "Hi", ""),
        ("qwen3", "Hi<think>\n", "Hm."),
        ("qwen3", "Hi<think>\n\n</think>\n\n", None),
        ("deepseek_r1", "Hi", "Hm."),
        ("deepseek_r1", "</think>", None),
    ],
)
def test_whether_an_answer_begins_in_reasoning(name: str, prompt: str, thought: str | None) -> None:
    assert name in REASONING_PARSERS
    parser = reasoning_parser(name, prompt, call_parser(None))
    assert (None if parser is None else parser.push("Hm.</think>")[0]) == thought
