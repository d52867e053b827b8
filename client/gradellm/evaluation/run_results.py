"""What a run has left on disk, taken up again: the results of one data set, and where its files lie."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradellm.evaluation.results_file import ResultsFileError, read_results
from gradellm.evaluation.run_spec import PAPER_METHODS
from gradellm.serialization import shown

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
    if not {"methods", "preset", "pis"} <= settings.keys():
        raise ResultsFileError(f"{output.results} was not written by `gradellm evaluate`: it lacks the settings of one")
    if not results.done:
        failed = f"; {len(results.failed)} failed, {next(iter(results.failed.values()))}" if results.failed else ""
        raise ResultsFileError(f"{output.results} has no example that is done, of which to make a table{failed}")
    _check(settings, _SETTINGS, f"{output.results}: settings")
    for one, record in results.done.items():
        where = f"{output.results}: the result of {shown(one)}"
        _check(record, _RECORD, where)
        _check_curves(record, len(settings["pis"]), where)
    bad = output.file("bad_rows.txt")
    return Run(
        path=str(output.results),
        title=data_title(settings["preset"]),
        settings=settings,
        records=tuple(results.done[one] for one in sorted(results.done)),
        failed=tuple(sorted(results.failed.items())),
        bad=tuple(bad.read_text(encoding="utf-8", errors="replace").splitlines()) if bad.exists() else (),
    )


# --- what a results file must hold for a table to be made of it -------------------------------------------------------

_HALF_PAIR = re.compile("[\ud800-\udfff]")
_MOST = 1e9  # of a metric's number, and of a count


@dataclass(frozen=True)
class _Each:
    """The shape of all values of an object, whatever their names, or of all items of a list."""

    of: Any
    kind: type = dict


_NUMBER, _COUNT, _TEXT = float, int, str
_RECORD = {
    "label": (_TEXT, None),
    "predicted": (_TEXT, None),
    "outside_labels": bool,
    "steps": _COUNT,
    "skipped_steps": _COUNT,
    "metrics": _Each(_Each(_Each((_NUMBER, _Each(_NUMBER, list))))),
    "by": {
        "name": _TEXT,
        "revision": _TEXT,
        "attention_kernel": _TEXT,
        "device": _TEXT,
        "versions": _Each(_TEXT),
    },
}
_SETTINGS = {
    "preset": _TEXT,
    "prompt": {"form": _TEXT},
    "labels": _Each(_TEXT, list),
    "data": {"sha256": _TEXT, "examples": _COUNT, "sample": (_COUNT, None), "balance": bool},
    "methods": _Each(dict),
    "metrics": _Each(_TEXT, list),
    "pis": _Each(_NUMBER, list),
    "samples": _COUNT,
    "stride": _COUNT,
    "offset": _COUNT,
    "seed": "a seed",
    "perturb": _TEXT,
    "removal": _TEXT,
    "raw_scores": bool,
    "max_new_tokens": (_COUNT, None),
    "model": {"weights_sha256": _TEXT, "dtype": _TEXT, "quantization": _TEXT},
}
_WANTED: dict[Any, str] = {
    _NUMBER: f"a number up to {_MOST:g}",
    _COUNT: f"a count up to {_MOST:g}",
    _TEXT: "a text without half a surrogate pair",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    None: "null",
    "a seed": "an integer from 0 to 2^63 - 1",
}


def _check(value: Any, shape: Any, where: str) -> None:  # noqa: ANN401  (what JSON holds, and a shape of the above)
    """Refuse what is not of a shape. Raises ResultsFileError with the place. More than it says may be there."""
    if isinstance(shape, dict):
        _check(value, dict, where)
        for name, inner in shape.items():
            if name not in value:
                raise ResultsFileError(f"{where}.{name} is missing; the file was not written by `gradellm evaluate`")
            _check(value[name], inner, f"{where}.{name}")
    elif isinstance(shape, _Each):
        _check(value, shape.kind, where)
        for name, inner in value.items() if shape.kind is dict else enumerate(value):
            _check(name, int if shape.kind is list else _TEXT, where)
            _check(inner, shape.of, f"{where}.{str(name)[:60]}")
    elif isinstance(shape, tuple):
        if not any(_is_of(value, one.kind if isinstance(one, _Each) else one) for one in shape):
            wanted = " or ".join(_WANTED[one.kind if isinstance(one, _Each) else one] for one in shape)
            raise ResultsFileError(f"{where} must be {wanted}, not {shown(value)}")
        for one in shape:
            if isinstance(one, _Each) and isinstance(value, one.kind):
                _check(value, one, where)
    elif not _is_of(value, shape):
        raise ResultsFileError(f"{where} must be {_WANTED[shape]}, not {shown(value)}")


def _is_of(value: object, shape: Any) -> bool:  # noqa: ANN401
    if shape is None:
        return value is None
    if shape == "a seed":
        return type(value) is int and 0 <= value < 2**63
    if shape is _NUMBER:
        return type(value) in (int, float) and abs(value) <= _MOST  # type: ignore[arg-type]  # a number, as just asked
    if shape is _TEXT:
        return isinstance(value, str) and not _HALF_PAIR.search(value)
    if shape is _COUNT:
        return type(value) is int and 0 <= value <= _MOST
    return type(value) is shape


def _check_curves(record: Mapping[str, Any], count: int, where: str) -> None:
    for metric, methods in record["metrics"].items():
        for name, of in methods.items():
            for key in ("value", EXPECTED_TOKENS):
                if isinstance(of.get(key), list):
                    raise ResultsFileError(f"{where}.metrics.{metric}.{name}.{key} must be a number")
            curve = of.get("curve", [0.0] * count)
            if not isinstance(curve, list) or len(curve) != count:
                raise ResultsFileError(
                    f"{where}.metrics.{metric}.{name}.curve must have {count} numbers, one for each pi"
                )


def made_by(runs: Sequence[Run]) -> list[tuple[Mapping[str, Any], int]]:
    """Return which servers' models and software computed, the most frequent first, and how many examples."""
    counts = Counter(json.dumps(record["by"], sort_keys=True) for run in runs for record in run.records)
    return [(json.loads(said), count) for said, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
