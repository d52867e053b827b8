"""What a trial finds, and how it is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One number.

    Attributes:
        what: what it is of.
        value: what came out, in words.
        limit: what was asked.
        holds: whether it does; None where nothing was asked.
    """

    what: str
    value: str
    limit: str = ""
    holds: bool | None = None


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that so many percent lie below or at."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


def table(title: str, caption: str, findings: Sequence[Mapping[str, Any]]) -> str:
    """Some findings as dictionaries, under a title, as Markdown."""
    lines = [f"\n## {title}\n", f"{caption}\n", "| | found | asked | |", "| --- | --- | --- | --- |"]
    for finding in findings:
        mark = {True: "holds", False: "**does not hold**", None: ""}[finding["holds"]]
        value = finding["value"].replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {finding['what']} | {value} | {finding['limit']} | {mark} |")
    return "\n".join(lines) + "\n"
