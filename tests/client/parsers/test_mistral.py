"""Calls after a marker."""

from __future__ import annotations

import pytest

from client.parsers.support import read, streamed, whole
from gradellm.parsers.mistral import MistralParser

ARGUMENTS = '{"a": "]"}'
OBJECT = f'{{"name": "f", "arguments": {ARGUMENTS}}}'


@pytest.mark.parametrize(
    ("text", "names", "content"),
    [
        (f"[TOOL_CALLS] [{OBJECT}]", "f", ""),
        (f"[TOOL_CALLS][{OBJECT}, {OBJECT}]\n", "ff", ""),
        (f"[TOOL_CALLS]{OBJECT}", "f", ""),
        (f"Hi [TOOL_CALLS]f{ARGUMENTS}[TOOL_CALLS]g{ARGUMENTS}", "fg", "Hi"),
        (f"[TOOL_CALLS]f[ARGS]{ARGUMENTS}[TOOL_CALLS]g[ARGS] {ARGUMENTS} ok", "fg", " ok"),
        (f"[TOOL_CALLS][{OBJECT}", "f", ""),
        (f"[TOOL_CALLS][{OBJECT} x", "f", "x"),
        ("[TOOL_CALLS] no name at all", "", None),
        ("[TOOL_CALLS][1]", "", None),
        (f"[TOOL_CALLS]f[ARGS]{ARGUMENTS[:-1]}", "", None),
        ("[TOOL_CALLS]", "", None),
        ("[TOOL", "", None),
    ],
)
def test_calls_and_text(text: str, names: str, content: str | None) -> None:
    expected = [(name, ARGUMENTS) for name in names]
    assert read(MistralParser(), text) == (expected, text if content is None else content)


def test_deltas_and_places() -> None:
    text = f"[TOOL_CALLS]f[ARGS]{ARGUMENTS}"
    assert streamed(MistralParser(), text) == [("name", "f"), ("arguments", ARGUMENTS)]
    (call,) = whole(MistralParser(), text).calls
    assert text[slice(*call.name_span)] == "f"
    assert text[slice(*call.arguments_span)] == ARGUMENTS
    assert [text[value.start : value.end] for value in call.values] == ['"]"']
    assert (call.start, call.end) == (0, len(text))
