"""A file of rows, one JSON object a line, which a run continues where the last one ended."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]


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
        """Append a row; it is on disk when this returns."""
        text = self.path.read_text()
        end = "" if text.endswith("\n") else "\n"  # of a line that was cut off while it was written
        with self.path.open("a") as file:
            file.write(f"{end}{json.dumps(_rounded(row))}\n")


def read(path: Path) -> Iterator[Row]:
    """The lines of a file; one that was cut off while it was written is left out."""
    for line in path.read_text().splitlines():
        with suppress(json.JSONDecodeError):
            yield json.loads(line)


def _rounded(value: Any) -> Any:  # noqa: ANN401 (JSON)
    """Numbers with six digits, which keeps files small."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value
