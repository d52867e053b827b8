"""Text on a terminal: style, width in columns, and escaping of characters that could control the terminal."""

from __future__ import annotations

import os
import sys
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gradellm.rendering.colormap import Theme

__all__ = ["ColorMode", "Style", "clusters", "display_width", "isolated", "use_color", "visible"]

ColorMode = Literal["auto", "always", "never"]

_FIRST_STRONG_ISOLATE, _POP_ISOLATE = "\u2068", "\u2069"


@dataclass(frozen=True, slots=True)
class Style:
    """How to draw on a terminal."""

    width: int
    """Columns of the terminal."""
    color: bool
    theme: Theme
    """The terminal's background."""
    fold: bool = True
    """Whether to leave out lines of long passages whose scores are all small."""

    @classmethod
    def of(cls, *, width: int, color: ColorMode, theme: Theme | Literal["auto"], fold: bool = True) -> Style:
        """Make a style; "auto" is resolved by standard output and the environment."""
        return cls(
            width=width,
            color=use_color(color, sys.stdout, os.environ),
            theme=_theme(os.environ) if theme == "auto" else theme,
            fold=fold,
        )

    def bold(self, text: str) -> str:
        """Return text in bold."""
        return f"\x1b[1m{text}\x1b[0m" if self.color else text

    def dim(self, text: str) -> str:
        """Return text in a faint colour."""
        return f"\x1b[2m{text}\x1b[0m" if self.color else text


def use_color(mode: ColorMode, stream: IO[str], environ: Mapping[str, str]) -> bool:
    """Return whether to use colours.

    "auto" follows NO_COLOR, then FORCE_COLOR and CLICOLOR_FORCE, then whether the stream is a terminal with colours.
    """
    if mode != "auto":
        return mode == "always"
    if environ.get("NO_COLOR"):
        return False
    if any(environ.get(name, "0") not in ("", "0") for name in ("FORCE_COLOR", "CLICOLOR_FORCE")):
        return True
    return stream.isatty() and environ.get("TERM") != "dumb"


def _theme(environ: Mapping[str, str]) -> Theme:
    """Guess the background by COLORFGBG ("15;0"), which some terminals set; dark by default."""
    background = environ.get("COLORFGBG", "").rpartition(";")[2]
    return "light" if background in ("7", "15") else "dark"


def visible(text: str) -> str:
    """Escape control and format characters and lone surrogates, so that text cannot control the terminal."""
    return "".join(_visible(char) for char in text)


def isolated(text: str) -> str:
    """Isolate right-to-left text, so that bidirectional terminals do not reorder adjacent text.

    Other text is returned unchanged.
    """
    is_right_to_left = any(unicodedata.bidirectional(char) in ("R", "AL") for char in text)
    return f"{_FIRST_STRONG_ISOLATE}{text}{_POP_ISOLATE}" if is_right_to_left else text


def display_width(text: str) -> int:
    """Return the width of text in columns. It should be `visible`, and may be `isolated`."""
    bare = text.replace(_FIRST_STRONG_ISOLATE, "").replace(_POP_ISOLATE, "")
    return sum(width for _, width, _, _ in clusters(bare))


def _visible(char: str) -> str:
    code = ord(char)
    if char == "\n":
        return "↵"
    if char == "\t":
        return "⇥"
    if code < 0x20 or code == 0x7F:
        return f"^{chr(code ^ 0x40)}"  # as `cat -v`
    if char in "\u200c\u200d":  # joiners, which shape their neighbours
        return char
    if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return char


@lru_cache(4096)
def _char_width(char: str) -> int:
    inside_hangul_syllable = "\u1160" <= char <= "\u11ff"
    if inside_hangul_syllable or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def clusters(text: str) -> Iterator[tuple[str, int, int, int]]:
    """Yield (visible form, width, start, end) of each character with its combining and joined ones."""
    form: list[str] = []
    width = start = 0
    for index, char in enumerate(text):
        shown = _visible(char)
        char_width = _char_width(char) if shown == char else len(shown)
        joined = char_width == 0 or (form[-1:] == ["\u200d"] and _char_width(text[start]) == 2)  # an emoji sequence
        if index and not joined:
            yield "".join(form), width, start, index
            form, width, start = [], 0, index
        form.append(shown)
        width = max(width, char_width)
    if text:
        yield "".join(form), width, start, len(text)
