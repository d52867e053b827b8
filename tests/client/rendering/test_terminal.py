"""Widths, escapes and styles of text on a terminal."""

from __future__ import annotations

import io

import pytest

from gradellm.rendering.colormap import Theme
from gradellm.rendering.terminal import Style, display_width, use_color, visible


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("abc", 3),
        ("猫", 2),
        ("e\u0301", 1),
        ("👩\u200d👩\u200d👧", 2),
        ("🤷\u200d♂\ufe0f", 2),
        ("a\u200db", 2),
        ("\u200d", 0),
        ("ｶ", 1),
        ("각", 2),
        ("", 0),
        ("한", 2),
    ],
)
def test_display_width(text: str, width: int) -> None:
    assert display_width(text) == width


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m", "^[[31m"),
        ("\x07\x00\x7f", "^G^@^?"),
        ("\x9b1m", "\\x9b1m"),
        ("a\u202eb", "a\\u202eb"),
        ("\u2028", "\\u2028"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("\t", "⇥"),
        ("é猫 ok", "é猫 ok"),
    ],
)
def test_control_characters_are_made_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("mode", "tty", "environ", "expected"),
    [
        ("always", False, {"NO_COLOR": "1"}, True),
        ("never", True, {"FORCE_COLOR": "1"}, False),
        ("auto", True, {}, True),
        ("auto", False, {}, False),
        ("auto", True, {"NO_COLOR": "1"}, False),
        ("auto", True, {"NO_COLOR": ""}, True),
        ("auto", False, {"FORCE_COLOR": "1"}, True),
        ("auto", False, {"CLICOLOR_FORCE": "1"}, True),
        ("auto", False, {"CLICOLOR_FORCE": "0"}, False),
        ("auto", True, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ("auto", True, {"TERM": "dumb"}, False),
    ],
)
def test_when_to_use_colour(mode: str, tty: bool, environ: dict[str, str], expected: bool) -> None:
    assert use_color(mode, Terminal() if tty else io.StringIO(), environ) is expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("colorfgbg", "theme"), [("15;0", "dark"), ("0;15", "light"), ("0;default;7", "light"), ("", "dark")]
)
def test_the_theme_by_the_environment(monkeypatch: pytest.MonkeyPatch, colorfgbg: str, theme: Theme) -> None:
    monkeypatch.setenv("COLORFGBG", colorfgbg)
    assert Style.of(width=40, color="never", theme="auto").theme == theme
