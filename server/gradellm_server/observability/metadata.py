"""What a caller sends beside its request."""

from __future__ import annotations

from collections.abc import Sequence

Metadata = Sequence[tuple[str, str | bytes]]


def value_of(metadata: Metadata, name: str) -> str:
    """The first text under a name; empty where there is none."""
    return next((value for key, value in metadata if key == name and isinstance(value, str)), "")
