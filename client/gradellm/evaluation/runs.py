"""What a run has left on disk, taken up again: the results of one data set, and where its files lie."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradellm.evaluation.plan import PAPER_METHODS
from gradellm.evaluation.results_file import ResultsFileError, read_results

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["EXPECTED_TOKENS", "Output", "Run", "data_title", "in_order", "made_by", "method_title", "read_run"]

_DATA_TITLES = {"sst2": "SST2", "imdb": "IMDb", "boolq": "BoolQ", "tellmewhy": "TellMeWhy", "wikibio": "WikiBio"}
METHOD_TITLES = {
    "attention": ("Attn", "Attention"),
    "deeplift": ("DL", "DeepLIFT"),
    "input_x_gradient": ("I×G", "Input×Gradients"),
    "integrated_gradients": ("IG", "Integrated Gradients"),
    "layer_gradient_x_activation": ("LGA", "Layer Gradient×Activation"),
    "random": ("Rnd", "Random"),
    "saliency": ("Sal", "Saliency"),
    "value_zeroing": ("VZ", "Value Zeroing"),
    "grad_ellm": ("Ours", "Grad-ELLM"),
    "unloosened": ("w/o", "Grad-ELLM without loosening"),
}
"""The paper's abbreviations, and what they mean."""
EXPECTED_TOKENS = "expected_tokens"
"""Stands among metrics for how many tokens the original ones keep."""


def method_title(name: str) -> str:
    """Return the paper's abbreviation, or the name where it has none."""
    return METHOD_TITLES[name][0] if name in METHOD_TITLES else name


def data_title(preset: str) -> str:
    """Return what the paper calls a data set, or its own name."""
    return _DATA_TITLES.get(preset, preset)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return methods in the order of the table's columns: the paper's, then others as they come; each once."""
    there = list(dict.fromkeys(names))
    first = [name for name in (*PAPER_METHODS, "unloosened") if name in there]
    return (*first, *(name for name in there if name not in first))


@dataclass(frozen=True)
class Output:
    """Where a run's files lie: in a folder of its own, or beside a results file, named after that."""

    results: Path
    prefix: str

    @classmethod
    def of(cls, out: str) -> Output:
        """Read the flag: a name that ends with .jsonl is a results file, any other a folder."""
        path = Path(out)
        if path.suffix == ".jsonl" and not path.is_dir():
            return cls(path, "" if path.name == "results.jsonl" else f"{path.stem}.")
        return cls(path / "results.jsonl", "")

    def file(self, name: str) -> Path:
        """Return where a file of that name goes."""
        return self.results.parent / f"{self.prefix}{name}"


@dataclass(frozen=True)
class Run:
    """What a results file holds, in an order that is the same however it was written."""

    path: str
    title: str
    settings: Mapping[str, Any]
    records: tuple[Mapping[str, Any], ...]
    """By example, in the order of ids."""
    failed: tuple[tuple[str, str], ...] = ()
    """Examples that failed, and why."""
    bad: tuple[str, ...] = ()
    """Rows of the data that could not be asked, and why."""

    @property
    def methods(self) -> tuple[str, ...]:
        """What was evaluated, in the order of the table's columns."""
        return in_order(self.settings["methods"])

    @property
    def model_title(self) -> str:
        """What the model was loaded by; of a long path the last two folders."""
        name = str(made_by([self])[0][0]["name"]).replace("\\", "/").rstrip("/")
        return "/".join(name.split("/")[-2:])

    def values(self, metric: str) -> dict[str, list[float]]:
        """Return each method's numbers, of the examples for which all have one. Empty where there are none."""
        source, key = ("soft_ns", EXPECTED_TOKENS) if metric == EXPECTED_TOKENS else (metric, "value")
        if metric == EXPECTED_TOKENS and source not in self.settings["metrics"]:
            source = "soft_nc"
        found: dict[str, list[float]] = {name: [] for name in self.methods}
        for record in self.records:
            of = record["metrics"].get(source, {})
            if all(key in of.get(name, {}) for name in found):
                for name, numbers in found.items():
                    numbers.append(of[name][key])
        return found if any(found.values()) else {}

    def curves(self, metric: str) -> dict[str, list[list[float]]]:
        """Return each method's curves over pi, a row an example, as `values` counts them."""
        rows = [record["metrics"].get(metric, {}) for record in self.records]
        rows = [row for row in rows if all("curve" in row.get(name, {}) for name in self.methods)]
        return {name: [row[name]["curve"] for row in rows] for name in self.methods} if rows else {}


def read_run(place: str) -> Run:
    """Read a folder's results.jsonl, or a results file. Raises ResultsFileError."""
    output = Output.of(place)
    results = read_results(output.results)
    settings = results.settings
    if "methods" not in settings or "preset" not in settings:
        raise ResultsFileError(f"{output.results} was not written by `gradellm evaluate`: it lacks the settings of one")
    if not results.done:
        failed = f"; {len(results.failed)} failed, {next(iter(results.failed.values()))}" if results.failed else ""
        raise ResultsFileError(f"{output.results} has no example that is done, of which to make a table{failed}")
    bad = output.file("bad_rows.txt")
    return Run(
        path=str(output.results),
        title=data_title(settings["preset"]),
        settings=settings,
        records=tuple(results.done[one] for one in sorted(results.done)),
        failed=tuple(sorted(results.failed.items())),
        bad=tuple(bad.read_text(encoding="utf-8").splitlines()) if bad.exists() else (),
    )


def made_by(runs: Sequence[Run]) -> list[tuple[Mapping[str, Any], int]]:
    """Return which servers' models and software computed, the most frequent first, and how many examples."""
    counts = Counter(json.dumps(record["by"], sort_keys=True) for run in runs for record in run.records)
    return [(json.loads(said), count) for said, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
