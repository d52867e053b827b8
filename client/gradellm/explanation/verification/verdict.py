"""The result of a verification."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gradellm.serialization import to_plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["TOLERANCE", "Findings", "Mismatch", "NotChecked", "Verdict", "group_by_reason"]

TOLERANCE = 1e-3
"""Of a row's largest score. Other kernels, thread counts and batch sizes round differently."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A part of the provenance that differs between the explanation and the server."""

    what: str
    """Its path, such as model.weights_sha256 or versions.torch."""
    then: str
    now: str


@dataclass(frozen=True, slots=True)
class NotChecked:
    """A field of the explanation that was not compared."""

    what: str
    """Its path in the file, such as finished.timings."""
    why: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of replaying an explanation."""

    rows: int
    """Number of attribution rows that were compared."""
    largest_difference: float
    """Largest difference of a score, relative to the largest score of its row."""
    worst_token: int | None
    """The token of that row; None if there are no rows."""
    largest_logprob_difference: float
    mismatches: tuple[Mismatch, ...]
    """Differences of the provenance, which may be harmless."""
    problems: tuple[str, ...] = ()
    """Fields of the explanation that the replay does not reproduce."""
    tolerance: float = TOLERANCE
    not_checked: tuple[NotChecked, ...] = ()
    other_model: str = ""
    """How the server's model differs from the explanation's, in which case nothing was computed. Else empty."""

    @property
    def holds(self) -> bool:
        """Whether the replay reproduces the explanation, scores within the tolerance. Mismatches are ignored."""
        is_reproduced = self.rows > 0 and not self.problems and not self.other_model
        return is_reproduced and self.largest_difference <= self.tolerance  # False for NaN

    @property
    def holds_strictly(self) -> bool:
        """Whether it holds, and model, versions and settings match."""
        return self.holds and not self.mismatches

    def to_plain(self) -> dict[str, Any]:
        """Return the verdict as JSON-compatible values."""
        return {"holds": self.holds, "holds_strictly": self.holds_strictly, **to_plain(self)}


@dataclass
class Findings:
    """Collects problems and unchecked fields during a comparison."""

    problems: list[str] = field(default_factory=list)
    not_checked: list[NotChecked] = field(default_factory=list)

    def skip(self, why: str, *paths: str) -> None:
        """Record fields that were not compared."""
        self.not_checked += [NotChecked(path, why) for path in paths]


def group_by_reason(not_checked: Iterable[NotChecked]) -> Iterator[str]:
    """Yield one line for each reason why fields were not compared."""
    by_reason: dict[str, list[str]] = {}
    for skipped in not_checked:
        by_reason.setdefault(skipped.why, []).append(skipped.what)
    for why, paths in by_reason.items():
        yield f"{', '.join(dict.fromkeys(_joined(paths)))} ({why})"


def _joined(paths: Sequence[str]) -> Iterator[str]:
    """Yield paths with fields of one parent joined: "finished.timings: queue_seconds, prefill_seconds"."""
    counts = Counter(path.rpartition(".")[0] for path in paths)
    for path in paths:
        parent = path.rpartition(".")[0]
        names = [other.rpartition(".")[2] for other in paths if other.rpartition(".")[0] == parent]
        yield f"{parent}: {', '.join(names)}" if parent and counts[parent] > 1 else path
