"""The parts of a table: a panel per model, a block per metric, a row per data set, a cell per method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradellm.evaluation import statistics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gradellm.evaluation.run_results import Run
    from gradellm.models import Interval

__all__ = ["Block", "Cell", "Panel", "Row"]


@dataclass(frozen=True)
class Cell:
    """One method's value in one row."""

    interval: Interval
    median: float | None
    """None for an average over data sets."""
    less_random: Interval | None
    """The paired difference from random; None for random itself, and if random was not evaluated."""
    rank: int | None = None
    """From 1, the best, by rounded values: values that are printed alike share a rank."""

    @property
    def zero_inside(self) -> bool | None:
        """Whether the interval of the difference from random contains zero."""
        return None if self.less_random is None else statistics.has_zero(self.less_random)


@dataclass(frozen=True)
class Row:
    """One data set's values, or their average."""

    title: str
    cells: Mapping[str, Cell]
    """By method, without methods that were not evaluated."""
    run: Run | None
    """None for the average."""


@dataclass(frozen=True)
class Block:
    """One metric."""

    metric: str
    digits: int
    rows: tuple[Row, ...]

    def formatted(self, cell: Cell) -> str:
        """Return the cell's mean with the digits of the table."""
        return f"{cell.interval.mean:.{self.digits}f}"


@dataclass(frozen=True)
class Panel:
    """One model."""

    title: str
    blocks: tuple[Block, ...]
    runs: tuple[Run, ...]
