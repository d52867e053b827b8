"""Heat maps of text on a terminal: passages and strengths to a string. Pure functions.

1. Text is split into cells: a character with its combining characters, escaped if it could control the terminal.
2. A cell has the strength of the span that covers it, -1 to 1 (pictures/picture.py).
3. Cells are wrapped to the terminal's width.
4. Of a long passage only lines with strong spans are kept; omitted lines are counted.
5. Lines are painted: with colours as backgrounds in orange, and in blue for negative strengths, with a readable
   foreground; without colours as blocks below the text.
"""

from __future__ import annotations

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

_LONG_PASSAGE, _KEPT_STRENGTH = 12, 0.25  # longer passages are folded to the lines of at least this strength
_HATCHED = "╱"  # below text that has no score
_FAINT = "\x1b[2m"
_LINE_BREAK = "\n"


@dataclass(frozen=True, slots=True)
class Span:
    """A span of a passage's text, in code points, with the index of its chip in the picture."""

    start: int
    end: int
    chip: int


@dataclass(frozen=True, slots=True)
class Passage:
    """A text to draw, with a label before it and its spans, which do not overlap."""

    label: str
    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """A character with its combining characters, or its escaped form."""

    text: str
    width: int
    """Columns on screen."""
    strength: float = 0.0
    """-1 to 1; 0 for no colour."""
    is_hatched: bool = False
    """Whether it is text that has no score."""


def heat_map(
    passages: Iterable[Passage], strengths: Mapping[int, float], style: Style, hatched: frozenset[int] = frozenset()
) -> str:
    """Draw passages below each other, each span with the strength of its chip. Ends with a line break.

    Chips of `hatched` have no score: they are faint, and hatched below where there are no colours.
    """
    passages = tuple(passages)
    gutter = 2 + max((display_width(passage.label) + 2 for passage in passages if passage.label), default=0)
    drawing: list[str] = []
    for passage in passages:
        margin = style.dim(f"  {passage.label}".ljust(gutter))
        lines = list(_wrapped(_cells(passage, strengths, hatched), max(1, style.width - gutter)))
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
    blocks = "".join((_HATCHED if cell.is_hatched else _block(cell.strength)) * cell.width for cell in line)
    return [text, " " * gutter + blocks] if blocks.strip() else [text]


def legend(style: Style, meaning: str, *, signed: bool) -> str:
    """Return one line that explains the colours, which stand for `meaning`."""
    if not style.color:
        shades = " and ░▒▓ below 0" if signed else ""
        return f"▁▂▃▄▅▆▇█ {meaning}{shades}, of each word’s strongest\n"
    low = -1.0 if signed else 0.0
    steps = 24 if signed else 12
    bar = _paint([Cell(" ", 1, low + (1 - low) * step / steps) for step in range(steps + 1)], style.theme)
    left, right = ("against", "for") if signed else ("0", "strongest")
    return f"{style.dim(left)} {bar} {style.dim(f'{right} of each word: {meaning}')}\n"


def _cells(passage: Passage, strengths: Mapping[int, float], hatched: frozenset[int]) -> Iterator[Cell]:
    chips: list[int | None] = [None] * len(passage.text)
    for span in passage.spans:
        chips[span.start : span.end] = [span.chip] * (min(span.end, len(chips)) - span.start)
    for form, width, start, _ in clusters(passage.text):
        chip = chips[start]
        cell = Cell(form, width, 0.0 if chip is None else strengths.get(chip, 0.0), chip in hatched)
        if passage.text[start] != "\n":
            yield cell
            continue
        if cell.strength:
            yield cell
        yield Cell(_LINE_BREAK, 0)


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
    for kept, run in groupby(lines, key=lambda line: any(abs(cell.strength) >= _KEPT_STRENGTH for cell in line)):
        group = list(run)
        if kept or len(group) == 1:
            yield from group
        else:
            yield f"⋯ {len(group)} lines below {_KEPT_STRENGTH:.0%} of the strongest"


def _last_break(line: list[Cell]) -> int:
    """Return the index after the last space or before the last wide character; the end if there are none."""
    for cut in range(len(line), 0, -1):
        if line[cut - 1].text == " " or (cut > 1 and line[cut - 1].width > 1):
            return cut
    return len(line)


def _paint(line: list[Cell], theme: Theme) -> str:
    painted = []
    for (strength, is_hatched), cells in groupby(line, key=lambda cell: (cell.strength, cell.is_hatched)):
        text = "".join(cell.text for cell in cells)
        sgr = _FAINT if is_hatched else _sgr(strength, theme) if strength else ""
        painted.append(f"{sgr}{text}\x1b[0m" if sgr else text)
    return "".join(painted)


@lru_cache(4096)
def _sgr(strength: float, theme: Theme) -> str:
    background = ramp(strength, theme)
    foreground = readable_on(background)
    return "\x1b[38;2;{};{};{};48;2;{};{};{}m".format(*foreground, *background)


def _block(strength: float) -> str:
    blocks = "▁▂▃▄▅▆▇█" if strength > 0 else "░▒▓"
    return blocks[min(int(abs(strength) * len(blocks)), len(blocks) - 1)] if strength else " "
