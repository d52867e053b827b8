"""A trace as text."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

from client.explanation.tracing.test_trace import ROWS, prefixed
from gradellm.explanation.tracing.trace_view import draw_trace
from gradellm.rendering.terminal import Style, display_width


def test_a_trace_is_a_table() -> None:
    trace = prefixed({**ROWS, 1: (-1.0,) * 7}).trace("loud")
    assert str(trace) == (
        "loud\n"
        "    share     direct    through  word\n"
        "      56%        50%         6%  on a mat\n"
        "      19%         0%        19%  cat\n"
        "      12%         0%        12%  sat\n"
        "through It 25% · purrs 25%\n"
        "unexplained 12%: rows without a positive score\n"
    )


def test_a_notebook_shows_the_same() -> None:
    trace = prefixed().trace("loud")
    shown: list[str] = []
    trace._repr_pretty_(SimpleNamespace(text=shown.append), cycle=False)
    assert shown == [str(trace)]


def test_lines_fit_the_width_and_control_nothing() -> None:
    trace = prefixed().trace("loud")
    long = replace(trace, parts=tuple(replace(part, label="\x1b[2J日本" * 400) for part in trace.parts))
    text = draw_trace(long, Style(width=60, color=True, theme="dark"))
    assert "\x1b[2J" not in text
    rows = [line for line in text.split("\n") if "日" in line]
    assert rows
    assert all(display_width(line) <= 60 for line in rows)
