"""Tables of a study: for each model, data set and metric the mean of each method, with an interval.

Rows with an even number choose the default, rows with an odd one judge it: a claim is made of the latter alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradellm_bench.capacity.report import markdown
from gradellm_bench.study.results import RANDOM, read
from gradellm_engine.faithfulness.metrics.statistics import PERCENTILES, RESAMPLES, Interval, bootstrap_interval
from gradellm_engine.utils.rng import stream

SOFT_METRICS = ("pi_soft_ns", "pi_soft_nc")
METRICS = (*SOFT_METRICS, "auprc", "source_first", "mass", "drawn_mass", "entropy", "largest")
RANKED = (*SOFT_METRICS, "auprc", "source_first")  # that choose the default: more is better
OVERVIEW: Mapping[str, tuple[tuple[str, ...], str]] = {
    "π-Soft-NS and NC": (SOFT_METRICS, ""),
    "people's reasons for a word": (("auprc",), "lambada"),
    "right word first": (("source_first",), "retrieval"),
    "colour on the right sentence": (("drawn_mass",), "retrieval"),
}  # metrics, and how the names of data sets begin
SEED = 0

Values = dict[str, list[float]]  # of a method, by row; NaN where a metric is not defined
Key = tuple[str, str, str]  # model, data set, metric


def load(folder: Path, parity: int | None = None) -> dict[Key, Values]:
    """The values of all files of a folder; `parity` 0 or 1 for rows with an even or an odd number alone."""
    found: dict[Key, Values] = defaultdict(dict)
    for path in sorted(folder.glob("*.jsonl")):
        first, *rows = read(path)
        settings: Mapping[str, Any] = first["settings"]
        counted = [row for row in rows if row.get("methods") and (parity is None or row["number"] % 2 == parity)]
        for metric in METRICS:
            values = {
                name: [row["methods"][name].get(metric, np.nan) for row in counted]
                for name in (*settings["methods"], RANDOM)
            }
            if any(np.isfinite(column).any() for column in values.values()):
                found[settings["model"], settings["dataset"], metric] = values
    return dict(found)


def intervals(values: Values) -> dict[str, Interval]:
    """The mean of each method over the rows where all have a value."""
    table = np.array(list(values.values()), dtype=np.float64)
    complete = np.isfinite(table).all(0)
    return {
        name: bootstrap_interval(row[complete], SEED) for name, row in zip(values, table, strict=True) if complete.any()
    }


def paired_table(data: Mapping[Key, Values], metric: str, reference: str, names: Sequence[str] | None = None) -> str:
    """As `table`, of each method's mean and its paired difference from a reference, on the rows that both have.

    Differences whose interval is without zero are bold.
    """
    columns = {key: values for key, values in data.items() if key[2] == metric and reference in values}
    names = names or list(dict.fromkeys(name for values in columns.values() for name in values))
    if not columns:
        return ""
    header = [
        "method",
        *(f"{model}, {dataset} ({np.isfinite(v[reference]).sum()})" for (model, dataset, _), v in columns.items()),
    ]
    lines = [
        [name, *(_paired_cell(values.get(name), values[reference]) for values in columns.values())] for name in names
    ]
    return markdown(header, lines)


def soft_table(data: Mapping[Key, Values], reference: str, names: Sequence[str] | None = None) -> str:
    """The mean of both pi-Soft metrics over a model's data sets, and paired differences from a reference.

    A row for each method, a column for each model. Rows are resampled within each data set; data sets have equal
    weights. Empty where nothing has the metrics.
    """
    soft = {key: values for key, values in data.items() if key[2] in SOFT_METRICS and reference in values}
    models = list(dict.fromkeys(model for model, _, _ in soft))
    names = names or list(dict.fromkeys(name for values in soft.values() for name in values))
    if not soft:
        return ""
    header = ["method"]
    for model in models:
        rows = {dataset: int(np.isfinite(v[reference]).sum()) for (m, dataset, _), v in soft.items() if m == model}
        header.append(f"{model} ({', '.join(f'{dataset} {n}' for dataset, n in rows.items())})")
    return markdown(header, [[name, *(_soft_cell(soft, model, name, reference) for model in models)] for name in names])


def overview_table(data: Mapping[Key, Values], costs: Mapping[str, str]) -> str:
    """What the README says of some methods: each metric's mean over data sets, then over models, with equal weights.

    Args:
        data: the values.
        costs: of each method of the table, in words.
    """
    header = ["method", "cost", *OVERVIEW]
    return markdown(header, [[name, cost, *_overview_cells(data, name)] for name, cost in costs.items()])


def _overview_cells(data: Mapping[Key, Values], name: str) -> Iterator[str]:
    for metrics, datasets in OVERVIEW.values():
        by_model: dict[str, list[float]] = defaultdict(list)
        for (model, dataset, metric), values in data.items():
            if metric in metrics and dataset.startswith(datasets) and name in values:
                by_model[model].append(float(np.nanmean(values[name])))
        yield f"{np.mean([np.mean(means) for means in by_model.values()]):.2f}" if by_model else ""


def _soft_cell(soft: Mapping[Key, Values], model: str, name: str, reference: str) -> str:
    """Mean, and difference from the reference with its interval."""
    means, differences = [], []
    for dataset in dict.fromkeys(key[1] for key in soft if key[0] == model):
        both = [soft[model, dataset, metric] for metric in SOFT_METRICS]
        if any(name not in values for values in both):
            return ""
        row, other = (np.mean([values[each] for values in both], axis=0) for each in (name, reference))
        complete = np.isfinite(row) & np.isfinite(other)
        means.append(row[complete].mean())
        differences.append((row - other)[complete])
    mean = np.mean([difference.mean() for difference in differences])
    low, high = stratified_interval(differences)
    difference = f"{mean:+.3f} ± {(high - low) / 2:.3f}"
    return f"{np.mean(means):.3f} ({difference if low <= 0 <= high else f'**{difference}**'})"


def stratified_interval(strata: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """The bootstrap interval of the mean of the strata's means, each resampled by itself. [n] each"""
    draws = stream(SEED, "bootstrap")
    means = [values[draws.integers(0, len(values), (RESAMPLES, len(values)))].mean(1) for values in strata]
    low, high = np.percentile(np.mean(means, axis=0), PERCENTILES)
    return float(low), float(high)


def _paired_cell(row: Sequence[float] | None, reference: Sequence[float]) -> str:
    """Mean, and difference from the reference with its interval."""
    if row is None:
        return ""
    pairs = np.array([row, reference], dtype=np.float64)
    pairs = pairs[:, np.isfinite(pairs).all(0)]
    if not pairs.size:
        return ""
    found = bootstrap_interval(pairs[0] - pairs[1], SEED)
    if found.low is None or found.high is None:
        return f"{pairs[0].mean():.3f} ({found.mean:+.3f})"
    difference = f"{found.mean:+.3f} ± {(found.high - found.low) / 2:.3f}"
    return f"{pairs[0].mean():.3f} ({difference if found.has_zero else f'**{difference}**'})"


def mean_ranks(data: Mapping[Key, Values], metrics: Sequence[str] = RANKED) -> dict[str, float]:
    """Each method's rank by the mean, 1 the best: averaged over the metrics of a data set, then over data sets.

    Data sets, of each model, have equal weights. Those on which some methods are not measured are left out.
    """
    columns = {key: intervals(values) for key, values in data.items() if key[2] in metrics}
    most = max(map(len, columns.values()), default=0)
    by_dataset: dict[str, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for (model, dataset, _), column in columns.items():
        if len(column) < most:
            continue
        means = {name: interval.mean for name, interval in column.items() if name != RANDOM}
        for name, mean in means.items():
            # Of methods with equal means, each has the mean of their ranks.
            above = sum(other > mean for other in means.values())
            equal = sum(other == mean for other in means.values())
            by_dataset[name][model, dataset].append(above + (equal + 1) / 2)
    return {name: float(np.mean([np.mean(of) for of in found.values()])) for name, found in by_dataset.items()}


def rank_table(data: Mapping[Key, Values]) -> str:
    """The mean ranks, best first."""
    ranks = sorted(mean_ranks(data).items(), key=lambda item: item[1])
    return markdown(["method", "mean rank"], [[name, f"{rank:.2f}"] for name, rank in ranks])


def table(data: Mapping[Key, Values], metric: str, names: Sequence[str] | None = None) -> str:
    """A row for each method, or those of `names`; a column for each model and data set.

    Empty where nothing has the metric.
    """
    columns = {key: intervals(values) for key, values in data.items() if key[2] == metric}
    names = names or list(dict.fromkeys(name for column in columns.values() for name in column))
    if not columns:
        return ""
    header = [
        "method",
        *(f"{model}, {dataset} ({next(iter(c.values())).n})" for (model, dataset, _), c in columns.items()),
    ]
    lines = [[name, *(_cell(column.get(name)) for column in columns.values())] for name in names]
    return markdown(header, lines)


def _cell(interval: Interval | None) -> str:
    if interval is None:
        return ""
    if interval.low is None or interval.high is None:
        return f"{interval.mean:.3f}"
    return f"{interval.mean:.3f} ± {(interval.high - interval.low) / 2:.3f}"
