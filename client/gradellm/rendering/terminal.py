"""Text with scores behind it, for a terminal: pure functions from passages and scores to a string.

1. Text is split into cells: a character with all that combines with it. What could steer the terminal is made visible.
2. A cell's score is the sum over the columns that cover it; the largest drawn one, by magnitude, is the full colour.
3. Cells are wrapped to the width by the columns that they take on screen.
4. Of a long passage only the lines that matter are kept, and the others are counted.
5. Each line is painted: in colour as backgrounds of one hue, orange, and blue for what is below 0, with a foreground
   that is readable on it; without colour as blocks under the text.

Colours run through OKLab, in which equal steps look equal, from the terminal's background to the full colour, so that a
score of half the largest looks half as strong, and a score of 0 is left alone.
"""

from __future__ import annotations

import math
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import IO, Literal

__all__ = [
    "Cell",
    "ColorMode",
    "Passage",
    "Span",
    "Style",
    "Theme",
    "display_width",
    "heat_map",
    "isolated",
    "legend",
    "ramp",
    "readable_on",
    "use_color",
    "visible",
]

ColorMode = Literal["auto", "always", "never"]
Theme = Literal["dark", "light"]

_FAINT = 0.03  # of the largest score: below this no eye sees a colour
_LONG, _MATTERS = 12, 0.25  # lines of a passage from which on it is folded, to those with so much of the largest score


@dataclass(frozen=True, slots=True)
class Style:
    """How to draw."""

    width: int
    """Columns of the terminal."""
    color: bool
    theme: Theme
    """Whether the terminal's background is dark or light."""
    fold: bool = True
    """Whether to leave out the lines of a long passage that have small scores only."""

    @classmethod
    def of(cls, *, width: int, color: ColorMode, theme: Theme | Literal["auto"], fold: bool = True) -> Style:
        """Resolve "auto" by standard output and the environment."""
        return cls(
            width=width,
            color=use_color(color, sys.stdout, os.environ),
            theme=_theme(os.environ) if theme == "auto" else theme,
            fold=fold,
        )

    def bold(self, text: str) -> str:
        """Make text stand out."""
        return f"\x1b[1m{text}\x1b[0m" if self.color else text

    def dim(self, text: str) -> str:
        """Make text stand back."""
        return f"\x1b[2m{text}\x1b[0m" if self.color else text


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a passage's text, in code points, that a column of scores stands for."""

    start: int
    end: int
    column: int


@dataclass(frozen=True, slots=True)
class Passage:
    """A text to draw, with a label before it, and what its parts stand for."""

    label: str
    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """What is drawn as one: a character with what combines with it, or the visible form of one that cannot be drawn."""

    text: str
    width: int
    """Columns on screen."""
    share: float = 0.0
    """Its score over the largest by magnitude, in -1..1."""


def use_color(mode: ColorMode, stream: IO[str], environ: Mapping[str, str]) -> bool:
    """Decide whether to draw in colour.

    "auto" follows NO_COLOR, then FORCE_COLOR and CLICOLOR_FORCE, then whether the stream is a terminal that can.
    """
    if mode != "auto":
        return mode == "always"
    if environ.get("NO_COLOR"):
        return False
    if any(environ.get(name, "0") not in ("", "0") for name in ("FORCE_COLOR", "CLICOLOR_FORCE")):
        return True
    return stream.isatty() and environ.get("TERM") != "dumb"


def _theme(environ: Mapping[str, str]) -> Theme:
    """Guess the background by COLORFGBG ("15;0"), which some terminals set; most people's is dark."""
    background = environ.get("COLORFGBG", "").rpartition(";")[2]
    return "light" if background in ("7", "15") else "dark"


def heat_map(passages: Iterable[Passage], scores: Mapping[int, float], style: Style) -> str:
    """Draw passages under each other, each part of their text with its column's score. Ends with a line break.

    The largest drawn score, by magnitude, has the full colour.
    """
    passages = tuple(passages)
    finite = {column: score for column, score in scores.items() if math.isfinite(score)}
    covering = {tuple(columns) for passage in passages for columns in _columns_by_character(passage)}
    peak = max((abs(sum(finite.get(column, 0.0) for column in columns)) for columns in covering), default=0.0)
    shares = {column: score / peak for column, score in scores.items() if peak and math.isfinite(score)}
    gutter = 2 + max((display_width(passage.label) + 2 for passage in passages if passage.label), default=0)
    drawing: list[str] = []
    for passage in passages:
        margin = style.dim(f"  {passage.label}".ljust(gutter))
        lines = list(_wrapped(_cells(passage, shares), max(1, style.width - gutter)))
        for line in _folded(lines) if style.fold else lines:
            drawing += _drawn(line, margin, gutter, style)
            margin = " " * gutter
    return "".join(f"{line.rstrip()}\n" for line in drawing)


def _drawn(line: list[Cell] | str, margin: str, gutter: int, style: Style) -> list[str]:
    if isinstance(line, str):
        return [margin + style.dim(line)]
    if style.color:
        return [margin + isolated(_painted(line, style.theme))]
    text = margin + isolated("".join(cell.text for cell in line))
    blocks = "".join(_block(cell.share) * cell.width for cell in line)
    return [text, " " * gutter + blocks] if blocks.strip() else [text]


def legend(style: Style, *, signed: bool) -> str:
    """Explain the colours in one line."""
    if not style.color:
        shades = " and ░▒▓ below 0" if signed else ""
        return f"▁▂▃▄▅▆▇█ attribution of the text above{shades}, scaled to each word’s largest\n"
    low = -1.0 if signed else 0.0
    steps = 24 if signed else 12
    bar = _painted([Cell(" ", 1, low + (1 - low) * step / steps) for step in range(steps + 1)], style.theme)
    left, right = ("against", "for") if signed else ("0", "largest")
    return f"{style.dim(left)} {bar} {style.dim(f'{right}: attribution, scaled to each word’s largest')}\n"


# --- cells ----------------------------------------------------------------------------------------------------------

_LINE_BREAK = "\n"
_FIRST_STRONG_ISOLATE, _POP_ISOLATE = "\u2068", "\u2069"


def visible(text: str) -> str:
    """Give text a form that cannot steer a terminal: control, format and half characters become visible."""
    return "".join(_visible(char) for char in text)


def isolated(text: str) -> str:
    """Keep text that runs right to left from moving what stands beside it, on terminals that know of directions.

    Other text is left as it is, and so is all text where a terminal knows of none.
    """
    runs_left = any(unicodedata.bidirectional(char) in ("R", "AL") for char in text)
    return f"{_FIRST_STRONG_ISOLATE}{text}{_POP_ISOLATE}" if runs_left else text


def display_width(text: str) -> int:
    """Count the columns that text takes on screen. It should be `visible`, and may be `isolated`."""
    bare = text.replace(_FIRST_STRONG_ISOLATE, "").replace(_POP_ISOLATE, "")
    return sum(width for _, width, _, _ in _clusters(bare))


def _visible(char: str) -> str:
    code = ord(char)
    if char == "\n":
        return "↵"
    if char == "\t":
        return "⇥"
    if code < 0x20 or code == 0x7F:
        return f"^{chr(code ^ 0x40)}"  # as `cat -v` has it: every font can draw that
    if char in "\u200c\u200d":  # joiners: they only shape what is beside them
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


def _clusters(text: str) -> Iterator[tuple[str, int, int, int]]:
    """Split text to (visible form, width, start, end): a character with the zero-width and joined ones after it."""
    form: list[str] = []
    width = start = 0
    for index, char in enumerate(text):
        shown = _visible(char)
        char_width = _char_width(char) if shown == char else len(shown)
        joined = char_width == 0 or (form[-1:] == ["\u200d"] and _char_width(text[start]) == 2)  # as emoji are
        if index and not joined:
            yield "".join(form), width, start, index
            form, width, start = [], 0, index
        form.append(shown)
        width = max(width, char_width)
    if text:
        yield "".join(form), width, start, len(text)


def _cells(passage: Passage, shares: Mapping[int, float]) -> Iterator[Cell]:
    columns = _columns_by_character(passage)
    for form, width, start, end in _clusters(passage.text):
        covering = {column for index in range(start, end) for column in columns[index]}
        share = sum(shares.get(column, 0.0) for column in sorted(covering))
        share = 0.0 if abs(share) < _FAINT else max(-1.0, min(1.0, share))
        if passage.text[start] != "\n":
            yield Cell(form, width, share)
            continue
        if share:
            yield Cell(form, width, share)
        yield Cell(_LINE_BREAK, 0)


def _columns_by_character(passage: Passage) -> list[list[int]]:
    """List the columns that cover each character, without the white space at the ends of a word.

    The words then stand apart as coloured chips, though most tokens begin with a space. White space alone is kept.
    """
    columns: list[list[int]] = [[] for _ in passage.text]
    for span in passage.spans:
        text = passage.text[span.start : span.end]
        bare = text.strip(" ")
        start = span.start + (len(text) - len(text.lstrip(" ")) if bare else 0)
        for index in range(start, min(start + len(bare or text), len(columns))):
            columns[index].append(span.column)
    return columns


def _wrapped(cells: Iterable[Cell], width: int) -> Iterator[list[Cell]]:
    """Break lines after spaces where there are any, and anywhere else where there are none."""
    line: list[Cell] = []
    taken = 0  # columns
    for cell in cells:
        if cell.text == _LINE_BREAK:
            yield line
            line, taken = [], 0
            continue
        while line and taken + cell.width > width and cell.text != " ":
            cut = _last_break(line)
            yield line[:cut]
            line = line[cut:]
            taken = sum(c.width for c in line)
        line.append(cell)
        taken += cell.width
    if line:
        yield line


def _folded(lines: list[list[Cell]]) -> Iterator[list[Cell] | str]:
    """Yield the lines to draw, and in place of each run of others how many they are."""
    if len(lines) <= _LONG:
        yield from lines
        return
    for kept, run in groupby(lines, key=lambda line: any(abs(cell.share) >= _MATTERS for cell in line)):
        group = list(run)
        if kept or len(group) == 1:
            yield from group
        else:
            yield f"⋯ {len(group)} lines below {_MATTERS:.0%} of the largest"


def _last_break(line: list[Cell]) -> int:
    """Find the place after the last space or beside the last wide character, or the end."""
    for cut in range(len(line), 0, -1):
        if line[cut - 1].text == " " or (cut > 1 and line[cut - 1].width > 1):
            return cut
    return len(line)


# --- paint ----------------------------------------------------------------------------------------------------------

_Lab = tuple[float, float, float]

_POSITIVE_HUE, _NEGATIVE_HUE = 60.0, 250.0  # orange and blue: apart for every kind of colour vision
_RAMPS: dict[Theme, tuple[tuple[float, float], tuple[float, float]]] = {
    "dark": ((0.20, 0.01), (0.77, 0.16)),  # (lightness, chroma) beside 0 and at the largest score
    "light": ((0.98, 0.01), (0.68, 0.17)),
}


def _painted(line: list[Cell], theme: Theme) -> str:
    painted = []
    for share, cells in groupby(line, key=lambda cell: cell.share):
        text = "".join(cell.text for cell in cells)
        painted.append(f"{_sgr(share, theme)}{text}\x1b[0m" if share else text)
    return "".join(painted)


@lru_cache(4096)
def _sgr(share: float, theme: Theme) -> str:
    background = ramp(share, theme)
    foreground = readable_on(background)
    return "\x1b[38;2;{};{};{};48;2;{};{};{}m".format(*foreground, *background)


def readable_on(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Choose black or white, whichever contrasts more; at a luminance of 0.179 they contrast alike."""
    return (0, 0, 0) if _luminance(background) > 0.179 else (255, 255, 255)


def ramp(share: float, theme: Theme) -> tuple[int, int, int]:
    """Choose the colour, in sRGB, of a share of the largest score."""
    (low_lightness, low_chroma), (high_lightness, high_chroma) = _RAMPS[theme]
    strength = abs(share)
    lightness = low_lightness + strength * (high_lightness - low_lightness)
    chroma = low_chroma + strength * (high_chroma - low_chroma)
    hue = math.radians(_POSITIVE_HUE if share >= 0 else _NEGATIVE_HUE)
    return _srgb((lightness, chroma * math.cos(hue), chroma * math.sin(hue)))


def _srgb(lab: _Lab) -> tuple[int, int, int]:
    """OKLab to 8-bit sRGB (Ottosson 2020)."""
    lightness, a, b = lab
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    red = 4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short
    green = -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short
    blue = -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short
    return _gamma(red), _gamma(green), _gamma(blue)


def _gamma(linear: float) -> int:
    linear = max(0.0, min(1.0, linear))
    return round(255 * (12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055))


def _luminance(color: tuple[int, int, int]) -> float:
    """Relative luminance, as WCAG defines it for contrast."""
    parts = (value / 255 for value in color)
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _block(share: float) -> str:
    blocks = "▁▂▃▄▅▆▇█" if share > 0 else "░▒▓"
    return blocks[min(int(abs(share) * len(blocks)), len(blocks) - 1)] if share else " "
