"""Builds the paper's tables from runs.

table1        area under the curves of pi-Soft-NS and pi-Soft-NC
table2        the original Soft-NS and Soft-NC, with the expected number of kept tokens
table4-MODEL  deletion and insertion; the paper's tables 4 and 5 are this one for two models
plausibility  agreement with human rationales (not in the paper)

1. Runs are in the order of the paper's data sets, and examples in the order of their ids, so that a resumed run gives
   the same tables as an uninterrupted one.
2. A metric uses the examples for which every method has a value, so that methods are compared on the same examples.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gradellm.errors import InvalidRequestError
from gradellm.evaluation import statistics
from gradellm.evaluation.names import EXPECTED_TOKENS, LOWER_IS_BETTER, in_order
from gradellm.evaluation.tables.table import Table
from gradellm.evaluation.tables.table_model import Block, Cell, Panel, Row
from gradellm.evaluation.tables.table_notes import notes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gradellm.evaluation.run_results import Run

__all__ = ["tables"]

_DATA_ORDER = ("imdb", "sst2", "boolq", "tellmewhy", "wikibio")  # the paper's
_RANDOM = "random"
_AVERAGE = "Avg"


@dataclass(frozen=True)
class _TableSpec:
    """The content of one of the paper's tables."""

    name: str
    title: str
    metrics: tuple[str, ...]
    digits: int = 3
    of_one_model: bool = False


_TABLES = (
    _TableSpec(
        "table1", "AUC of the π-Soft-NS and π-Soft-NC curves (the paper's table 1)", ("pi_soft_ns", "pi_soft_nc")
    ),
    _TableSpec(
        "table2",
        "the original Soft-NS and Soft-NC, with the expected number of kept tokens (the paper's table 2)",
        ("soft_ns", "soft_nc", EXPECTED_TOKENS),
    ),
    _TableSpec(
        "table4",
        "deletion and insertion, the share of changed answers (the paper's tables 4 and 5 are this one for two models)",
        ("deletion", "insertion"),
        digits=4,
        of_one_model=True,
    ),
    _TableSpec("plausibility", "agreement with human rationales", ("auprc", "token_f1")),
)


def tables(runs: Sequence[Run], command: str) -> list[Table]:
    """Return the tables for which the runs have values; `command` is the command line that made them.

    Raises InvalidRequestError if the runs cannot be compared.
    """
    panels = _by_model(_titled(runs))
    built: list[Table] = []
    for spec in _TABLES:
        of_spec = [panel for title, of_model in panels.items() if (panel := _panel(spec, title, of_model)).blocks]
        for number, chosen in enumerate([[panel] for panel in of_spec] if spec.of_one_model else [of_spec], 1):
            if not chosen:
                continue
            name = spec.name
            if spec.of_one_model:
                name += f"-{_slug(chosen[0].title)}"
                name += f"-{number}" if any(table.name == name for table in built) else ""
            methods = in_order(name for panel in chosen for run in panel.runs for name in run.methods)
            table_notes = tuple(notes(chosen, methods))
            built.append(Table(name, spec.title, methods, tuple(chosen), command, table_notes))
    return built


def _titled(runs: Sequence[Run]) -> list[Run]:
    """Return runs in the paper's order, with unique titles."""
    if duplicates := [
        path for path, count in Counter(str(Path(run.path).resolve()) for run in runs).items() if count > 1
    ]:
        raise InvalidRequestError.of("tables", f"{duplicates[0]} is given twice; each results file counts once")
    counts = Counter((_model_key(run), run.title) for run in runs)
    titled = [
        replace(run, title=f"{run.title} ({_file_title(run)})") if counts[_model_key(run), run.title] > 1 else run
        for run in runs
    ]
    return sorted(titled, key=_data_rank)  # stable: other data sets follow in the given order


def _data_rank(run: Run) -> int:
    preset = run.settings["preset"]
    return _DATA_ORDER.index(preset) if preset in _DATA_ORDER else len(_DATA_ORDER)


def _file_title(run: Run) -> str:
    path = Path(run.path)
    return path.parent.name if path.name == "results.jsonl" and path.parent.name else path.name


def _model_key(run: Run) -> str:
    return json.dumps(run.settings["model"], sort_keys=True)


def _by_model(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs by model, under unique titles."""
    models: dict[str, list[Run]] = {}
    for run in runs:
        models.setdefault(_model_key(run), []).append(run)
    counts = Counter(of_model[0].model_title for of_model in models.values())
    titled = {}
    for of_model in models.values():
        title, model = of_model[0].model_title, of_model[0].settings["model"]
        suffix = f" ({model['dtype']}, {model['quantization']}, {model['weights_sha256'][:8]})"
        titled[title + (suffix if counts[title] > 1 else "")] = of_model
    return titled


def _panel(spec: _TableSpec, title: str, runs: Sequence[Run]) -> Panel:
    blocks = []
    measured: dict[str, Run] = {}
    for metric in spec.metrics:
        with_values = [(run, values) for run in runs if (values := run.values(metric))]
        if not with_values:
            continue
        if metric.startswith("pi_"):
            _check_pis([run for run, _ in with_values])
        measured |= {run.path: run for run, _ in with_values}
        digits = 1 if metric == EXPECTED_TOKENS else spec.digits
        rows = [_row(run, metric, values) for run, values in with_values]
        if len(with_values) > 1:
            rows.append(_average(with_values, metric))
        blocks.append(Block(metric, digits, tuple(_ranked(row, metric, digits) for row in rows)))
    return Panel(title, tuple(blocks), tuple(measured.values()))


def _check_pis(runs: Sequence[Run]) -> None:
    for run in runs[1:]:
        if run.settings["pis"] != runs[0].settings["pis"]:
            raise InvalidRequestError.of(
                "tables",
                f"{runs[0].path} and {run.path} have different pis, so their areas cannot be compared; make a table of "
                "each",
            )


def _row(run: Run, metric: str, values: Mapping[str, Sequence[float]]) -> Row:
    seed = run.settings["seed"]
    means = statistics.bootstrap_intervals(values, seed)
    less = statistics.bootstrap_intervals(_less_random(values, metric), seed)
    cells = {name: Cell(means[name], statistics.median(numbers), less.get(name)) for name, numbers in values.items()}
    return Row(run.title, cells, run)


def _average(runs: Sequence[tuple[Run, Mapping[str, Sequence[float]]]], metric: str) -> Row:
    """Average over data sets with equal weights, as in the paper."""
    seed = runs[0][0].settings["seed"]
    means = statistics.average_intervals([values for _, values in runs], seed)
    less = statistics.average_intervals([_less_random(values, metric) for _, values in runs], seed)
    return Row(_AVERAGE, {name: Cell(interval, None, less.get(name)) for name, interval in means.items()}, None)


def _less_random(values: Mapping[str, Sequence[float]], metric: str) -> dict[str, list[float]]:
    """Return each method's paired differences from random, by example."""
    if _RANDOM not in values or metric == EXPECTED_TOKENS:
        return {}
    return {
        name: [value - random for value, random in zip(numbers, values[_RANDOM], strict=True)]
        for name, numbers in values.items()
        if name != _RANDOM
    }


def _ranked(row: Row, metric: str, digits: int) -> Row:
    if metric == EXPECTED_TOKENS:
        return row
    sign = 1 if metric in LOWER_IS_BETTER else -1
    keys = {name: sign * round(cell.interval.mean, digits) for name, cell in row.cells.items()}
    return replace(
        row,
        cells={
            name: replace(cell, rank=1 + sum(key < keys[name] for key in keys.values()))
            for name, cell in row.cells.items()
        },
    )


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9._]+", "-", title.lower()).strip("-.") or "model"
