"""Compares numbers, and dataclasses field by field."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["abbreviated", "distance", "field_problems", "is_close", "is_unset"]


def field_problems(
    stored: Any,  # noqa: ANN401  (a dataclass)
    replayed: Any,  # noqa: ANN401  (of the same class)
    where: str,
    names: Sequence[str] | None = None,
) -> Iterator[str]:
    """Yield a problem for each field that differs; unset fields of an older file are ignored."""
    for field in fields(stored):
        if names is not None and field.name not in names:
            continue
        was, now = getattr(stored, field.name), getattr(replayed, field.name)
        if was != now and not is_unset(field, was):
            yield f"{where}: {field.name} is {abbreviated(was)}, replay gives {abbreviated(now)}"


def is_unset(field: Any, value: object) -> bool:  # noqa: ANN401  (a dataclasses.Field)
    """Whether a field was added after the first version of the format and is at its default."""
    return field.default is not MISSING and value == field.default


def abbreviated(value: object) -> str:
    """Return the `repr` of a value, at most 60 characters of it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def distance(first: float, second: float) -> float:
    """Return the absolute difference; 0 for equal infinities and two NaNs, infinity for one NaN."""
    if first == second or (math.isnan(first) and math.isnan(second)):
        return 0.0
    return math.inf if math.isnan(first) or math.isnan(second) else abs(first - second)


def is_close(value: float, expected: float, tolerance: float) -> bool:
    """Whether two numbers differ by at most `tolerance`, relative to the expected one if that is larger than 1."""
    return distance(value, expected) <= tolerance * max(1.0, abs(expected) if math.isfinite(expected) else 1.0)
