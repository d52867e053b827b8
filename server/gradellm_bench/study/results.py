"""A file of rows, one JSON object a line, which a run continues where the last one ended."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
RANDOM = "random"  # the scores that all methods are compared with


@dataclass(frozen=True)
class ResultsFile:
    """The rows of one model, one data set and one stage.

    Attributes:
        path: JSON lines; the first says what was run, each other one is a row, or the id of a row that does not count.
        settings: what is run. A file with others is refused.
    """

    path: Path
    settings: Mapping[str, Any]

    def ids(self) -> set[str]:
        """The rows that are measured already.

        Raises:
            ValueError: where the file was made with other settings.
        """
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps({"settings": dict(self.settings)}) + "\n")
            return set()
        first, *rows = read(self.path)
        if first["settings"] != json.loads(json.dumps(dict(self.settings))):
            raise ValueError(f"{self.path} was measured with other settings: {first['settings']}; name another folder")
        return {row["id"] for row in rows}

    def add(self, row: Row) -> None:
        """Append a row; it is on disk when this returns. Values stand by metric, a list over methods, to be short."""
        text = self.path.read_text()
        end = "" if text.endswith("\n") else "\n"  # of a line that was cut off while it was written
        with self.path.open("a") as file:
            file.write(f"{end}{json.dumps(_by_metric(row, self._names))}\n")

    @property
    def _names(self) -> list[str]:
        return [*self.settings["methods"], RANDOM]


def read(path: Path) -> Iterator[Row]:
    """The lines of a file, the settings first; a line that was cut off while it was written is left out."""
    names: list[str] = []
    for line in path.read_text().splitlines():
        with suppress(json.JSONDecodeError):
            row = json.loads(line)
            names = names or [*row["settings"]["methods"], RANDOM]
            if "metrics" in row:
                row["methods"] = _by_method(row.pop("metrics"), names)
            yield row


def _by_metric(row: Row, names: Sequence[str]) -> Row:
    """A row with a list over methods for each metric, of four digits; None where a method has no value."""
    if "methods" not in row:
        return row
    methods = row["methods"]
    metrics = {metric: None for name in names for metric in methods.get(name, {})}
    columns = {metric: [_rounded(methods.get(name, {}).get(metric)) for name in names] for metric in metrics}
    return {key: value for key, value in row.items() if key != "methods"} | {"metrics": columns}


def _by_method(columns: Mapping[str, Sequence[float | None]], names: Sequence[str]) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {name: {} for name in names}
    for metric, values in columns.items():
        for name, value in zip(names, values, strict=True):
            if value is not None:
                rows[name][metric] = value
    return rows


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
