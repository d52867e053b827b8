"""Heat maps of text on a terminal: passages and scores to a string. Pure functions.

1. Text is split into cells: a character with its combining characters, escaped if it could control the terminal.
2. A cell's score is the sum over the columns that cover it. The largest score by magnitude has the full colour.
3. Cells are wrapped to the terminal's width.
4. Of a long passage only lines with large scores are kept; omitted lines are counted.
5. Lines are painted: with colours as backgrounds in orange, and in blue for negative scores, with a readable
   foreground; without colours as blocks below the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING

from gradellm.rendering.colormap import ramp, readable_on
from gradellm.rendering.terminal import clusters, display_width, isolated

if TYPE_CHECKING:
    from gradellm.rendering.colormap import Theme
    from gradellm.rendering.terminal import Style

__all__ = ["Cell", "Passage", "Span", "heat_map", "legend"]

_MIN_SHARE = 0.03  # of the largest score; smaller shares have no visible colour
_LONG_PASSAGE, _KEPT_SHARE = 12, 0.25  # longer passages are folded to the lines with this share of the largest score
_LINE_BREAK = "\n"


@dataclass(frozen=True, slots=True)
class Span:
    """A span of a passage's text, in code points, with its column of scores."""

    start: int
    end: int
    column: int


@dataclass(frozen=True, slots=True)
class Passage:
    """A text to draw, with a label before it and its scored spans."""

    label: str
    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """A character with its combining characters, or its escaped form."""

    text: str
    width: int
    """Columns on screen."""
    share: float = 0.0
    """Its score divided by the largest magnitude, in -1..1."""


def heat_map(passages: Iterable[Passage], scores: Mapping[int, float], style: Style) -> str:
    """Draw passages below each other, each span with the score of its column. Ends with a line break.

    The largest drawn score by magnitude has the full colour.
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
            drawing += _draw_line(line, margin, gutter, style)
            margin = " " * gutter
    return "".join(f"{line.rstrip()}\n" for line in drawing)


def _draw_line(line: list[Cell] | str, margin: str, gutter: int, style: Style) -> list[str]:
    if isinstance(line, str):
        return [margin + style.dim(line)]
    if style.color:
        return [margin + isolated(_paint(line, style.theme))]
    text = margin + isolated("".join(cell.text for cell in line))
    blocks = "".join(_block(cell.share) * cell.width for cell in line)
    return [text, " " * gutter + blocks] if blocks.strip() else [text]


def legend(style: Style, *, signed: bool) -> str:
    """Return one line that explains the colours."""
    if not style.color:
        shades = " and ░▒▓ below 0" if signed else ""
        return f"▁▂▃▄▅▆▇█ attribution of the text above{shades}, scaled to each word’s largest\n"
    low = -1.0 if signed else 0.0
    steps = 24 if signed else 12
    bar = _paint([Cell(" ", 1, low + (1 - low) * step / steps) for step in range(steps + 1)], style.theme)
    left, right = ("against", "for") if signed else ("0", "largest")
    return f"{style.dim(left)} {bar} {style.dim(f'{right}: attribution, scaled to each word’s largest')}\n"


def _cells(passage: Passage, shares: Mapping[int, float]) -> Iterator[Cell]:
    columns = _columns_by_character(passage)
    for form, width, start, end in clusters(passage.text):
        covering = {column for index in range(start, end) for column in columns[index]}
        share = sum(shares.get(column, 0.0) for column in sorted(covering))
        share = 0.0 if abs(share) < _MIN_SHARE else max(-1.0, min(1.0, share))
        if passage.text[start] != "\n":
            yield Cell(form, width, share)
            continue
        if share:
            yield Cell(form, width, share)
        yield Cell(_LINE_BREAK, 0)


def _columns_by_character(passage: Passage) -> list[list[int]]:
    """Return the columns that cover each character.

    Spaces at the ends of a span are left out, so that words are separate chips although most tokens begin with a space;
    spans of spaces only are kept.
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
    """Break lines after spaces if possible, else anywhere."""
    line: list[Cell] = []
    columns = 0
    for cell in cells:
        if cell.text == _LINE_BREAK:
            yield line
            line, columns = [], 0
            continue
        while line and columns + cell.width > width and cell.text != " ":
            cut = _last_break(line)
            yield line[:cut]
            line = line[cut:]
            columns = sum(c.width for c in line)
        line.append(cell)
        columns += cell.width
    if line:
        yield line


def _folded(lines: list[list[Cell]]) -> Iterator[list[Cell] | str]:
    """Yield the lines to keep, and a count in place of each run of other lines."""
    if len(lines) <= _LONG_PASSAGE:
        yield from lines
        return
    for kept, run in groupby(lines, key=lambda line: any(abs(cell.share) >= _KEPT_SHARE for cell in line)):
        group = list(run)
        if kept or len(group) == 1:
            yield from group
        else:
            yield f"⋯ {len(group)} lines below {_KEPT_SHARE:.0%} of the largest"


def _last_break(line: list[Cell]) -> int:
    """Return the index after the last space or before the last wide character; the end if there are none."""
    for cut in range(len(line), 0, -1):
        if line[cut - 1].text == " " or (cut > 1 and line[cut - 1].width > 1):
            return cut
    return len(line)


def _paint(line: list[Cell], theme: Theme) -> str:
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


def _block(share: float) -> str:
    blocks = "▁▂▃▄▅▆▇█" if share > 0 else "░▒▓"
    return blocks[min(int(abs(share) * len(blocks)), len(blocks) - 1)] if share else " "
