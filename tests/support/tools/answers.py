"""Answers that call tools, with scores that are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from client.explanation.conftest import explanation as simple
from gradellm import Attribution, Explanation, PromptToken, Token

PROMPT = (  # text, role, message, segment
    ("<s>", "template", None, ""),
    ('{"name":"weather"}', "system", None, "tool:weather"),
    ('{"name":"time"}', "system", None, "tool:time"),
    ("How is ", "user", 0, ""),
    ("Bonn", "user", 0, "town"),
    ("yes", "tool", 1, ""),
)
ANSWER = (
    "<tool_call>",
    '{"name": "',
    "weath",
    "er",
    '", "arguments": {"city": "',
    "Bo",
    "nn",
    '", "n": ',
    "2",
    "}}",
    "",
)
HIGH = {2: 1, 3: 1, 5: 4, 6: 4, 8: 5}  # the token's column with the score 3; the others have 0.25


def called(answer: Sequence[str] = ANSWER, **changes: Any) -> Explanation:
    """An answer to PROMPT: a token a text, and a special token for an empty one."""
    start, prompt = 0, []
    for index, (text, role, message, segment) in enumerate(PROMPT):
        prompt.append(PromptToken(index, text, start, start + len(text), role, message, segment, role == "template"))  # type: ignore[arg-type]
        start += len(text)
    start, tokens = 0, []
    for index, text in enumerate(answer):
        tokens.append(Token(index, 50 + index, text, start, start + len(text), -1.0, (), not text, None))
        start += len(text)
    rows = [
        Attribution(index, tuple(3.0 if HIGH.get(index) == column else 0.25 for column in range(6)), (), 0, None)
        for index in range(len(answer))
    ]
    started = replace(simple().started, prompt_text="".join(part[0] for part in PROMPT), prompt_tokens=tuple(prompt))
    return Explanation(replace(started, **changes), tuple(tokens), tuple(rows), None)
