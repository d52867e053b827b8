"""Reads the results of a run over one data set, and names the run's files."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradellm.evaluation.names import EXPECTED_TOKENS, data_title, in_order
from gradellm.evaluation.results_file import ResultsFileError, read_results
from gradellm.evaluation.results_schema import check_record, check_settings
from gradellm.serialization import short_repr

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Output", "Run", "computed_by", "read_run"]


@dataclass(frozen=True)
class Output:
    """The paths of a run's files: in a folder, or next to a results file with its name as a prefix."""

    results: Path
    prefix: str

    @classmethod
    def of(cls, out: str) -> Output:
        """Parse the flag --out: a path that ends in .jsonl is a results file, any other path a folder."""
        path = Path(out)
        if path.suffix == ".jsonl" and not path.is_dir():
            return cls(path, "" if path.name == "results.jsonl" else f"{path.stem}.")
        return cls(path / "results.jsonl", "")

    def file(self, name: str) -> Path:
        """Return the path of another file of the run."""
        return self.results.parent / f"{self.prefix}{name}"


@dataclass(frozen=True)
class Run:
    """The results of a run, in an order that does not depend on the order of evaluation."""

    path: str
    title: str
    settings: Mapping[str, Any]
    records: tuple[Mapping[str, Any], ...]
    """One per example, in the order of ids."""
    failed: tuple[tuple[str, str], ...] = ()
    """Failed examples: their ids and errors."""
    bad: tuple[str, ...] = ()
    """Bad rows of the data, with their problems."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The evaluated methods, in the order of table columns."""
        return in_order(self.settings["methods"])

    @property
    def model_title(self) -> str:
        """The model's hub id, or the last two folders of its path."""
        name = str(computed_by([self])[0][0]["name"]).replace("\\", "/").rstrip("/")
        return "/".join(name.split("/")[-2:])

    def values(self, metric: str) -> dict[str, list[float]]:
        """Return each method's values, over the examples for which all methods have one. Empty if there are none."""
        source, key = ("soft_ns", EXPECTED_TOKENS) if metric == EXPECTED_TOKENS else (metric, "value")
        if metric == EXPECTED_TOKENS and source not in self.settings["metrics"]:
            source = "soft_nc"
        values: dict[str, list[float]] = {name: [] for name in self.methods}
        for record in self.records:
            by_method = record["metrics"].get(source, {})
            if all(key in by_method.get(name, {}) for name in values):
                for name, of_method in values.items():
                    of_method.append(by_method[name][key])
        return values if any(values.values()) else {}

    def curves(self, metric: str) -> dict[str, list[list[float]]]:
        """Return each method's curves over pi, one row per example, over the same examples as `values`."""
        rows = [record["metrics"].get(metric, {}) for record in self.records]
        rows = [row for row in rows if all("curve" in row.get(name, {}) for name in self.methods)]
        return {name: [row[name]["curve"] for row in rows] for name in self.methods} if rows else {}


def read_run(place: str) -> Run:
    """Read the results file of a folder, or a results file. Raises ResultsFileError if it has no usable results."""
    output = Output.of(place)
    results = read_results(output.results)
    settings = results.settings
    if not {"methods", "preset", "pis"} <= settings.keys():
        raise ResultsFileError(f"{output.results} was not written by `gradellm evaluate`: its settings are incomplete")
    if not results.done:
        failed = f"; {len(results.failed)} failed, {next(iter(results.failed.values()))}" if results.failed else ""
        raise ResultsFileError(f"{output.results} has no finished example to make a table of{failed}")
    check_settings(settings, f"{output.results}: settings")
    for example_id, record in results.done.items():
        check_record(record, len(settings["pis"]), f"{output.results}: the result of {short_repr(example_id)}")
    bad = output.file("bad_rows.txt")
    return Run(
        path=str(output.results),
        title=data_title(settings["preset"]),
        settings=settings,
        records=tuple(results.done[example_id] for example_id in sorted(results.done)),
        failed=tuple(sorted(results.failed.items())),
        bad=tuple(bad.read_text(encoding="utf-8", errors="replace").splitlines()) if bad.exists() else (),
    )


def computed_by(runs: Sequence[Run]) -> list[tuple[Mapping[str, Any], int]]:
    """Return the models and software versions that computed the runs, with their numbers of examples, largest first."""
    counts = Counter(json.dumps(record["by"], sort_keys=True) for run in runs for record in run.records)
    return [(json.loads(by), count) for by, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
