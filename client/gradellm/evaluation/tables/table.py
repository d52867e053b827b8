"""A table, and its formats: Markdown, text for a terminal, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradellm.evaluation import statistics
from gradellm.evaluation.names import LOWER_IS_BETTER, method_title, metric_heading
from gradellm.evaluation.run_results import computed_by
from gradellm.evaluation.tables.table_notes import answer_counts, format_versions, small_sample_warning
from gradellm.rendering.terminal import display_width, visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gradellm.evaluation.run_results import Run
    from gradellm.evaluation.tables.table_model import Block, Cell, Panel, Row
    from gradellm.models import Interval

__all__ = ["Table", "align_columns"]


_DETAIL_COLUMNS = (
    "metric",
    "data",
    "method",
    "n",
    "mean",
    "95 % interval",
    "median",
    "less random's",
    "95 % interval",
    "zero inside",
)


@dataclass(frozen=True)
class Table:
    """One of the paper's tables."""

    name: str
    """The stem of its files."""
    title: str
    methods: tuple[str, ...]
    panels: tuple[Panel, ...]
    command: str
    """The command line that made it."""
    notes: tuple[str, ...] = ()

    def to_markdown(self) -> str:
        """Return the table with its notes and all intervals."""
        lines = [f"# {self.title[0].upper()}{self.title[1:]}", ""]
        for panel in self.panels:
            lines += [f"**{_escaped(panel.title)}**", ""]
            lines += _markdown([["", *map(method_title, self.methods)]])
            for block in panel.blocks:
                lines += [f"| **{metric_heading(block.metric)}** |{' |' * len(self.methods)}"]
                lines += [
                    _markdown_row(
                        [_escaped(row.title), *(_markdown_cell(block, row.cells.get(name)) for name in self.methods)]
                    )
                    for row in block.rows
                ]
            lines.append("")
        lines += [*(f"- {_escaped(note)}" for note in self.notes), f"- Made by: {_code_span(self.command)}", ""]
        lines += ["## Intervals", ""]
        lines += _markdown([list(_DETAIL_COLUMNS)], text_columns=3)
        lines += [_markdown_row(list(map(_escaped, cells))) for cells in self._details()]
        return "\n".join(lines) + "\n"

    def to_text(self, *, color: bool = False) -> str:
        """Return the table for a terminal, without notes; ranks are bold, underlined and italic, or 1, 2 and 3."""
        grid: list[list[str]] = [["", *(visible(method_title(name)) for name in self.methods)]]
        for panel in self.panels:
            if len(self.panels) > 1:
                grid.append([visible(panel.title)])
            for block in panel.blocks:
                grid.append([metric_heading(block.metric)])
                grid += [
                    [
                        f"  {visible(row.title)}",
                        *(_terminal_cell(block, row.cells.get(name), color=color) for name in self.methods),
                    ]
                    for row in block.rows
                ]
        return align_columns(grid)

    def to_csv(self) -> str:
        """Return one line per value, with its model, data set, metric and method."""
        out = io.StringIO()
        writer = csv.DictWriter(out, list(next(self._values())), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._values())
        return out.getvalue()

    def to_json(self) -> str:
        """Return all values, notes and settings."""
        plain = {
            "format": "gradellm table",
            "version": 1,
            "table": self.name,
            "title": self.title,
            "methods": {name: method_title(name) for name in self.methods},
            "numbers": [
                {
                    name: value
                    for name, value in line.items()
                    if name not in ("command", "versions", "revision", "attention_kernel")
                }
                for line in self._values()
            ],
            "runs": [_run_to_plain(run) for panel in self.panels for run in panel.runs],
            "notes": list(self.notes),
            "command": self.command,
        }
        return json.dumps(plain, ensure_ascii=False, indent=1) + "\n"

    def against_random(self) -> Iterator[str]:
        """Yield by metric the methods that are not distinguishable from random, and those that are worse.

        By the average over data sets, if there is one.
        """
        for panel in self.panels:
            for block in panel.blocks:
                alike: list[str] = []
                worse: list[str] = []
                differences = {
                    name: cell.less_random for name, cell in block.rows[-1].cells.items() if cell.less_random
                }
                for name, interval in differences.items():
                    if statistics.has_zero(interval):
                        alike.append(method_title(name))
                    elif (interval.mean > 0) == (block.metric in LOWER_IS_BETTER):
                        worse.append(method_title(name))
                if not differences:
                    continue
                parts = [f"not distinguishable from random: {', '.join(alike)}"] if alike else []
                parts += [f"worse than random: {', '.join(worse)}"] if worse else []
                model = f"{panel.title}, " if len(self.panels) > 1 else ""
                heading = metric_heading(block.metric)[:-2]
                yield f"{model}{heading}: {'; '.join(parts) or 'all are better than random'}"
        if warning := small_sample_warning(self.panels):
            yield warning

    def _cells(self) -> Iterator[tuple[Panel, Block, Row, str, Cell]]:
        for panel in self.panels:
            for block in panel.blocks:
                for row in block.rows:
                    for name in self.methods:
                        if name in row.cells:
                            yield panel, block, row, name, row.cells[name]

    def _details(self) -> Iterator[list[str]]:
        for panel, block, row, name, cell in self._cells():
            data = row.title if len(self.panels) == 1 else f"{panel.title}: {row.title}"
            less, zero = cell.less_random, {None: "", True: "yes", False: "no"}[cell.zero_inside]
            yield [
                metric_heading(block.metric),
                data,
                method_title(name),
                f"{cell.interval.count:,}",
                block.formatted(cell),
                _bounds(cell.interval, block.digits),
                "" if cell.median is None else f"{cell.median:.{block.digits}f}",
                "" if less is None else f"{less.mean:+.{block.digits}f}",
                "" if less is None else _bounds(less, block.digits, sign="+"),
                zero,
            ]

    def _values(self) -> Iterator[dict[str, Any]]:
        for panel, block, row, name, cell in self._cells():
            interval = cell.interval
            runs = panel.runs if row.run is None else (row.run,)
            model = computed_by(panel.runs)[0][0]
            of_runs = [answer_counts(run) for run in runs]
            labelled = sum(counts["labelled"] for counts in of_runs)
            yield {
                "table": self.name,
                "model": model["name"],
                "data": row.title,
                "metric": block.metric,
                "method": name,
                "n": interval.count,
                **_mean_and_bounds("", interval),
                "median": _rounded(cell.median),
                **_mean_and_bounds("less_random_", cell.less_random),
                "zero_inside": cell.zero_inside,
                "rank": cell.rank,
                "failed": sum(len(run.failed) for run in runs),
                "bad_rows": sum(len(run.bad) for run in runs),
                "skipped_steps": sum(counts["skipped"] for counts in of_runs),
                "outside_labels": sum(counts["outside"] for counts in of_runs),
                "accuracy": _rounded(sum(counts["right"] for counts in of_runs) / labelled) if labelled else None,
                "revision": model["revision"],
                "dtype": panel.runs[0].settings["model"]["dtype"],
                "quantization": panel.runs[0].settings["model"]["quantization"],
                "attention_kernel": model["attention_kernel"],
                "seed": " ".join(dict.fromkeys(str(run.settings["seed"]) for run in runs)),
                "versions": format_versions(model["versions"]),
                "command": self.command,
            }


def _run_to_plain(run: Run) -> dict[str, Any]:
    return {
        "data": run.title,
        "n": len(run.records),
        **answer_counts(run),
        "failed": dict(run.failed),
        "bad_rows": list(run.bad),
        "by": [{**by, "examples": count} for by, count in computed_by([run])],
        "settings": run.settings,
    }


def _rounded(number: float | None) -> float | None:
    """Round to 6 digits: further digits of float32 sums depend on the machine."""
    return None if number is None else round(number, 6)


def _mean_and_bounds(prefix: str, interval: Interval | None) -> dict[str, float | None]:
    return {
        f"{prefix}{name}": None if interval is None else _rounded(getattr(interval, name))
        for name in ("mean", "low", "high")
    }


def _bounds(interval: Interval, digits: int, sign: str = "") -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f"{interval.low:{sign}.{digits}f} to {interval.high:{sign}.{digits}f}"


def _markdown_cell(block: Block, cell: Cell | None) -> str:
    if cell is None:
        return ""
    before, after = {1: ("**", "**"), 2: ("<u>", "</u>"), 3: ("*", "*")}.get(cell.rank or 0, ("", ""))
    return f"{before}{block.formatted(cell)}{after}"


def _terminal_cell(block: Block, cell: Cell | None, *, color: bool) -> str:
    if cell is None:
        return "-" if color else "- "
    text = block.formatted(cell)
    if not color:
        return text + {1: "¹", 2: "²", 3: "³"}.get(cell.rank or 0, " ")
    code = {1: "1", 2: "4", 3: "3"}.get(cell.rank or 0)
    return f"\x1b[{code}m{text}\x1b[0m" if code else text


def _markdown(head: Sequence[Sequence[str]], *, text_columns: int = 1) -> list[str]:
    (names,) = head
    kinds = ["---" if column < text_columns else "---:" for column in range(len(names))]
    return [_markdown_row(names), _markdown_row(kinds)]


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """Escape Markdown in a cell or a list item."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))


def _code_span(text: str) -> str:
    """Return a Markdown code span, with as many backticks as the text needs."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{' ' if '`' in text else ''}{' '.join(text.split())}{' ' if '`' in text else ''}{fence}"


_STYLING = re.compile(r"\x1b\[[0-9;]*m")


def align_columns(grid: Sequence[Sequence[str]], gap: int = 2) -> str:
    """Align rows of cells in columns, the first to the left, the rest to the right. A row of one cell is a heading."""
    full = [row for row in grid if len(row) > 1]
    columns = max(map(len, full), default=0)
    widths = [max(_width(row[column]) for row in full if column < len(row)) for column in range(columns)]
    lines = []
    for row in grid:
        cells = [row[0] + " " * (widths[0] - _width(row[0])) if len(row) > 1 else row[0]]
        cells += [" " * (widths[column] - _width(row[column])) + row[column] for column in range(1, len(row))]
        lines.append((" " * gap).join(cells).rstrip())
    return "\n".join(lines) + "\n"


def _width(text: str) -> int:
    return display_width(_STYLING.sub("", text))
