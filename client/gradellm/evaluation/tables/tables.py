"""The paper's tables: a row a data set, a column a method, and under them what it takes to judge them.

table1        area under the curves of pi-Soft-NS and pi-Soft-NC
table2        the original Soft-NS and Soft-NC, with how many tokens they keep
table4-MODEL  deletion and insertion; the paper's tables 4 and 5 are this one for two models
plausibility  agreement with human rationales (ours)

1. Runs come in the order of the paper's data sets. Examples count in the order of their ids, so that a run that was
   stopped and resumed gives the tables of one that was not.
2. A panel is a model, a block a metric, with the average of several data sets. An example counts for a metric where
   every method has a number, so that methods are compared on the same ones.
3. A table writes itself as Markdown, CSV (a line a number), JSON, and text for a terminal.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradellm.errors import InvalidRequestError
from gradellm.evaluation import statistics
from gradellm.evaluation.report import title as metric_title
from gradellm.evaluation.run_results import EXPECTED_TOKENS, in_order, made_by, method_title
from gradellm.evaluation.tables.table_notes import answers, few, notes, versions_said
from gradellm.rendering.terminal import display_width, visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gradellm.evaluation.run_results import Run
    from gradellm.models import Interval

__all__ = ["Block", "Cell", "Panel", "Row", "Table", "aligned", "arrow", "tables"]

_DATA_ORDER = ("imdb", "sst2", "boolq", "tellmewhy", "wikibio")  # the paper's
_LOWER_IS_BETTER = ("insertion",)
_RANDOM = "random"
_AVERAGE = "Avg"


@dataclass(frozen=True)
class _Kind:
    """What one of the paper's tables has."""

    name: str
    title: str
    metrics: tuple[str, ...]
    digits: int = 3
    of_one_model: bool = False


_KINDS = (
    _Kind("table1", "AUC of the π-Soft-NS and π-Soft-NC curves (the paper's table 1)", ("pi_soft_ns", "pi_soft_nc")),
    _Kind(
        "table2",
        "the original Soft-NS and Soft-NC, with how many tokens they keep in the mean (the paper's table 2)",
        ("soft_ns", "soft_nc", EXPECTED_TOKENS),
    ),
    _Kind(
        "table4",
        "deletion and insertion, the share of changed answers (the paper's tables 4 and 5 are this one for two models)",
        ("deletion", "insertion"),
        digits=4,
        of_one_model=True,
    ),
    _Kind("plausibility", "agreement with human rationales", ("auprc", "token_f1")),
)


def arrow(metric: str) -> str:
    """Return the metric's name as a heading, with an arrow to where better numbers lie."""
    if metric == EXPECTED_TOKENS:
        return "E[R]"
    name = metric_title(metric)
    name = f"AUC {name}" if metric.startswith("pi_") else name[0].upper() + name[1:]
    return f"{name} {'↓' if metric in _LOWER_IS_BETTER else '↑'}"


# --- numbers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One method's number in one row."""

    interval: Interval
    median: float | None
    """None of an average over data sets."""
    less_random: Interval | None
    """The paired difference from random; None of random itself, and where random was not evaluated."""
    rank: int | None = None
    """1 is the best; by numbers as they are shown, so that those that look equal are."""

    @property
    def zero_inside(self) -> bool | None:
        """Whether the difference from random may be none."""
        return None if self.less_random is None else statistics.has_zero(self.less_random)


@dataclass(frozen=True)
class Row:
    """One data set's numbers, or the average."""

    title: str
    cells: Mapping[str, Cell]
    """By method. A method that was not evaluated is absent."""
    run: Run | None
    """None of the average."""


@dataclass(frozen=True)
class Block:
    """One metric."""

    metric: str
    digits: int
    rows: tuple[Row, ...]

    def shown(self, cell: Cell) -> str:
        """Return the cell's number as the table has it."""
        return f"{cell.interval.mean:.{self.digits}f}"


@dataclass(frozen=True)
class Panel:
    """One model."""

    title: str
    blocks: tuple[Block, ...]
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Table:
    """One of the paper's tables."""

    name: str
    """Of its files."""
    title: str
    methods: tuple[str, ...]
    panels: tuple[Panel, ...]
    command: str
    """What made it."""
    notes: tuple[str, ...] = ()

    # The forms -------------------------------------------------------------------------------------------------------

    def to_markdown(self) -> str:
        """Return it with its notes and all intervals."""
        lines = [f"# {self.title[0].upper()}{self.title[1:]}", ""]
        for panel in self.panels:
            lines += [f"**{_escaped(panel.title)}**", ""]
            lines += _markdown([["", *map(method_title, self.methods)]])
            for block in panel.blocks:
                lines += [f"| **{arrow(block.metric)}** |{' |' * len(self.methods)}"]
                lines += [
                    _markdown_row(
                        [_escaped(row.title), *(_marked(block, row.cells.get(name)) for name in self.methods)]
                    )
                    for row in block.rows
                ]
            lines.append("")
        lines += [*(f"- {_escaped(note)}" for note in self.notes), f"- Made by: {_code(self.command)}", ""]
        lines += ["## Intervals", ""]
        lines += _markdown([list(_DETAILS)], text_columns=3)
        lines += [_markdown_row(list(map(_escaped, cells))) for cells in self._details()]
        return "\n".join(lines) + "\n"

    def to_text(self, *, color: bool = False) -> str:
        """Return it for a terminal: without notes, marked by bold, underline and italics, or by 1, 2 and 3."""
        grid: list[list[str]] = [["", *(visible(method_title(name)) for name in self.methods)]]
        for panel in self.panels:
            if len(self.panels) > 1:
                grid.append([visible(panel.title)])
            for block in panel.blocks:
                grid.append([arrow(block.metric)])
                grid += [
                    [
                        f"  {visible(row.title)}",
                        *(_typed(block, row.cells.get(name), color=color) for name in self.methods),
                    ]
                    for row in block.rows
                ]
        return aligned(grid)

    def to_csv(self) -> str:
        """Return a line a number, with all that belongs to it."""
        out = io.StringIO()
        writer = csv.DictWriter(out, list(next(self._lines())), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._lines())
        return out.getvalue()

    def to_json(self) -> str:
        """Return all numbers, notes and settings."""
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
                for line in self._lines()
            ],
            "runs": [_run_plain(run) for panel in self.panels for run in panel.runs],
            "notes": list(self.notes),
            "command": self.command,
        }
        return json.dumps(plain, ensure_ascii=False, indent=1) + "\n"

    def against_random(self) -> Iterator[str]:
        """Say by metric which methods are not told from random and which are worse, on average where there is one."""
        for panel in self.panels:
            for block in panel.blocks:
                told: dict[bool, list[str]] = {True: [], False: []}
                less = {name: cell.less_random for name, cell in block.rows[-1].cells.items() if cell.less_random}
                for name, interval in less.items():
                    is_worse = (interval.mean > 0) == (block.metric in _LOWER_IS_BETTER)
                    if statistics.has_zero(interval):
                        told[True].append(method_title(name))
                    elif is_worse:
                        told[False].append(method_title(name))
                if not less:
                    continue
                parts = [f"not told from random: {', '.join(told[True])}"] if told[True] else []
                parts += [f"worse than random: {', '.join(told[False])}"] if told[False] else []
                model = f"{panel.title}, " if len(self.panels) > 1 else ""
                yield f"{model}{arrow(block.metric)[:-2]}: {'; '.join(parts) or 'all are better than random'}"
        if warning := few(self.panels):
            yield warning

    # Their parts -----------------------------------------------------------------------------------------------------

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
                arrow(block.metric),
                data,
                method_title(name),
                f"{cell.interval.count:,}",
                block.shown(cell),
                _low_high(cell.interval, block.digits),
                "" if cell.median is None else f"{cell.median:.{block.digits}f}",
                "" if less is None else f"{less.mean:+.{block.digits}f}",
                "" if less is None else _low_high(less, block.digits, sign="+"),
                zero,
            ]

    def _lines(self) -> Iterator[dict[str, Any]]:
        for panel, block, row, name, cell in self._cells():
            interval = cell.interval
            runs = panel.runs if row.run is None else (row.run,)
            model = made_by(panel.runs)[0][0]
            of_runs = [answers(run) for run in runs]
            golden = sum(of["labelled"] for of in of_runs)
            yield {
                "table": self.name,
                "model": model["name"],
                "data": row.title,
                "metric": block.metric,
                "method": name,
                "n": interval.count,
                **_ends("", interval),
                "median": _rounded(cell.median),
                **_ends("less_random_", cell.less_random),
                "zero_inside": cell.zero_inside,
                "rank": cell.rank,
                "failed": sum(len(run.failed) for run in runs),
                "bad_rows": sum(len(run.bad) for run in runs),
                "skipped_steps": sum(of["skipped"] for of in of_runs),
                "outside_labels": sum(of["outside"] for of in of_runs),
                "accuracy": _rounded(sum(of["right"] for of in of_runs) / golden) if golden else None,
                "revision": model["revision"],
                "dtype": panel.runs[0].settings["model"]["dtype"],
                "quantization": panel.runs[0].settings["model"]["quantization"],
                "attention_kernel": model["attention_kernel"],
                "seed": " ".join(dict.fromkeys(str(run.settings["seed"]) for run in runs)),
                "versions": versions_said(model["versions"]),
                "command": self.command,
            }


_DETAILS = (
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


def tables(runs: Sequence[Run], command: str) -> list[Table]:
    """Return the tables that the runs have numbers for.

    Raises InvalidRequestError where they cannot stand in one table.
    """
    panels = _by_model(_titled(runs))
    made: list[Table] = []
    for kind in _KINDS:
        full = [_panel(kind, title, of) for title, of in panels.items()]
        full = [panel for panel in full if panel.blocks]
        for place, chosen in enumerate([[panel] for panel in full] if kind.of_one_model else [full]):
            if not chosen:
                continue
            name = kind.name
            if kind.of_one_model:
                name += f"-{_slug(chosen[0].title)}"
                name += f"-{place + 1}" if any(table.name == name for table in made) else ""
            methods = in_order(name for panel in chosen for run in panel.runs for name in run.methods)
            said = tuple(notes(chosen, methods))
            table = Table(name, kind.title, methods, tuple(chosen), command, said)
            made.append(table)
    return made


def _titled(runs: Sequence[Run]) -> list[Run]:
    """In the paper's order, each with a title of its own."""
    if twice := [path for path, count in Counter(str(Path(run.path).resolve()) for run in runs).items() if count > 1]:
        raise InvalidRequestError.of("tables", f"{twice[0]} is there twice; each results file counts once")
    counts = Counter((_model_key(run), run.title) for run in runs)
    titled = [
        replace(run, title=f"{run.title} ({_named_by(run)})") if counts[_model_key(run), run.title] > 1 else run
        for run in runs
    ]
    return sorted(titled, key=_place)  # stable: others stay behind, in the order that was given


def _place(run: Run) -> int:
    preset = run.settings["preset"]
    return _DATA_ORDER.index(preset) if preset in _DATA_ORDER else len(_DATA_ORDER)


def _named_by(run: Run) -> str:
    path = Path(run.path)
    return path.parent.name if path.name == "results.jsonl" and path.parent.name else path.name


def _model_key(run: Run) -> str:
    return json.dumps(run.settings["model"], sort_keys=True)


def _by_model(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """By model, under its name."""
    models: dict[str, list[Run]] = {}
    for run in runs:
        models.setdefault(_model_key(run), []).append(run)
    names = Counter(of[0].model_title for of in models.values())
    titled = {}
    for of in models.values():
        model = of[0].settings["model"]
        more = f" ({model['dtype']}, {model['quantization']}, {model['weights_sha256'][:8]})"
        titled[of[0].model_title + (more if names[of[0].model_title] > 1 else "")] = of
    return titled


def _panel(kind: _Kind, title: str, runs: Sequence[Run]) -> Panel:
    blocks = []
    measured: dict[str, Run] = {}
    for metric in kind.metrics:
        of = [(run, values) for run in runs for values in [run.values(metric)] if values]
        if not of:
            continue
        if metric.startswith("pi_"):
            _check_pis([run for run, _ in of])
        measured |= {run.path: run for run, _ in of}
        digits = 1 if metric == EXPECTED_TOKENS else kind.digits
        rows = [_row(run, metric, values) for run, values in of]
        if len(of) > 1:
            rows.append(_average(of, metric))
        blocks.append(Block(metric, digits, tuple(_ranked(row, metric, digits) for row in rows)))
    return Panel(title, tuple(blocks), tuple(measured.values()))


def _check_pis(runs: Sequence[Run]) -> None:
    for run in runs[1:]:
        if run.settings["pis"] != runs[0].settings["pis"]:
            raise InvalidRequestError.of(
                "tables",
                f"{runs[0].path} and {run.path} were run with other pis, so that their areas are not of one kind; make "
                "a table of each",
            )


def _row(run: Run, metric: str, values: Mapping[str, Sequence[float]]) -> Row:
    seed = run.settings["seed"]
    means = statistics.bootstrap_intervals(values, seed)
    less = statistics.bootstrap_intervals(_less_random(values, metric), seed)
    cells = {name: Cell(means[name], statistics.median(numbers), less.get(name)) for name, numbers in values.items()}
    return Row(run.title, cells, run)


def _average(of: Sequence[tuple[Run, Mapping[str, Sequence[float]]]], metric: str) -> Row:
    """Each data set counts the same, as in the paper."""
    seed = of[0][0].settings["seed"]
    means = statistics.average_intervals([values for _, values in of], seed)
    less = statistics.average_intervals([_less_random(values, metric) for _, values in of], seed)
    return Row(_AVERAGE, {name: Cell(interval, None, less.get(name)) for name, interval in means.items()}, None)


def _less_random(values: Mapping[str, Sequence[float]], metric: str) -> dict[str, list[float]]:
    """Return each method's differences from random, example by example."""
    if _RANDOM not in values or metric == EXPECTED_TOKENS:
        return {}
    return {
        name: [one - other for one, other in zip(numbers, values[_RANDOM], strict=True)]
        for name, numbers in values.items()
        if name != _RANDOM
    }


def _ranked(row: Row, metric: str, digits: int) -> Row:
    if metric == EXPECTED_TOKENS:
        return row
    sign = 1 if metric in _LOWER_IS_BETTER else -1
    shown = {name: sign * round(cell.interval.mean, digits) for name, cell in row.cells.items()}
    return replace(
        row,
        cells={
            name: replace(cell, rank=1 + sum(other < shown[name] for other in shown.values()))
            for name, cell in row.cells.items()
        },
    )


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9._]+", "-", title.lower()).strip("-.") or "model"


# --- writing ----------------------------------------------------------------------------------------------------------


def _run_plain(run: Run) -> dict[str, Any]:
    return {
        "data": run.title,
        "n": len(run.records),
        **answers(run),
        "failed": dict(run.failed),
        "bad_rows": list(run.bad),
        "by": [{**by, "examples": count} for by, count in made_by([run])],
        "settings": run.settings,
    }


def _rounded(number: float | None) -> float | None:
    """What can be relied on: sums of float32 differ in the last digits from machine to machine."""
    return None if number is None else round(number, 6)


def _ends(prefix: str, interval: Interval | None) -> dict[str, float | None]:
    return {
        f"{prefix}{name}": None if interval is None else _rounded(getattr(interval, name))
        for name in ("mean", "low", "high")
    }


def _low_high(interval: Interval, digits: int, sign: str = "") -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f"{interval.low:{sign}.{digits}f} to {interval.high:{sign}.{digits}f}"


def _marked(block: Block, cell: Cell | None) -> str:
    if cell is None:
        return ""
    before, after = {1: ("**", "**"), 2: ("<u>", "</u>"), 3: ("*", "*")}.get(cell.rank or 0, ("", ""))
    return f"{before}{block.shown(cell)}{after}"


def _typed(block: Block, cell: Cell | None, *, color: bool) -> str:
    if cell is None:
        return "-" if color else "- "
    shown = block.shown(cell)
    if not color:
        return shown + {1: "¹", 2: "²", 3: "³"}.get(cell.rank or 0, " ")
    code = {1: "1", 2: "4", 3: "3"}.get(cell.rank or 0)
    return f"\x1b[{code}m{shown}\x1b[0m" if code else shown


def _markdown(head: Sequence[Sequence[str]], *, text_columns: int = 1) -> list[str]:
    (names,) = head
    kinds = ["---" if place < text_columns else "---:" for place in range(len(names))]
    return [_markdown_row(names), _markdown_row(kinds)]


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """Make text of a cell or a list's item nothing but text."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Make text a span of code, whatever backticks it has."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{' ' if '`' in text else ''}{' '.join(text.split())}{' ' if '`' in text else ''}{fence}"


_STYLING = re.compile(r"\x1b\[[0-9;]*m")


def aligned(grid: Sequence[Sequence[str]], gap: int = 2) -> str:
    """Return rows of cells in columns, the first to the left, others to the right. A row of one cell is a heading."""
    full = [row for row in grid if len(row) > 1]
    columns = max(map(len, full), default=0)
    widths = [max(_width(row[place]) for row in full if place < len(row)) for place in range(columns)]
    lines = []
    for row in grid:
        cells = [row[0] + " " * (widths[0] - _width(row[0])) if len(row) > 1 else row[0]]
        cells += [" " * (widths[place] - _width(row[place])) + row[place] for place in range(1, len(row))]
        lines.append((" " * gap).join(cells).rstrip())
    return "\n".join(lines) + "\n"


def _width(text: str) -> int:
    return display_width(_STYLING.sub("", text))
