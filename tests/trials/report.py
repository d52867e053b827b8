"""Findings of a trial, and their Markdown table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One measured figure.

    Attributes:
        what: its name.
        value: what was measured, as text.
        limit: what is required; empty for none.
        holds: whether the value meets the limit; None without a limit.
    """

    what: str
    value: str
    limit: str = ""
    holds: bool | None = None


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` percent of the values are below or equal to; 0 for no values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


def table(title: str, caption: str, findings: Sequence[Mapping[str, Any]]) -> str:
    """Findings (as dictionaries) under a title, as Markdown."""
    lines = [f"\n## {title}\n", f"{caption}\n", "| | found | required | |", "| --- | --- | --- | --- |"]
    for finding in findings:
        mark = {True: "holds", False: "**does not hold**", None: ""}[finding["holds"]]
        value = finding["value"].replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {finding['what']} | {value} | {finding['limit']} | {mark} |")
    return "\n".join(lines) + "\n"
