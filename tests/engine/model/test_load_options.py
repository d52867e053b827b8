"""Options of loading that contradict each other or the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.tiny_models import load_error

ModelPath = Callable[[str], Path]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"dtype": "float8"}, "dtype 'float8' is not one of auto, float64, float32"),
        ({"device": "gpu"}, "device 'gpu'"),
        ({"device": "cuda:99"}, "device 'cuda:99'"),
        ({"device": "meta"}, "device 'meta'"),
        ({"device": ""}, "device ''"),
        ({"device_map": "zzz"}, "zzz"),
        ({"device": "cpu", "device_map": "auto"}, "not both"),
        ({"context_tokens": 1}, "2 to 256"),
        ({"context_tokens": 257}, "2 to 256"),
        ({"threads": 0}, "at least 1 thread"),
        ({"max_new_tokens": 0}, "at least 1"),
    ],
)
def test_invalid_options(folder: Path, arguments: dict[str, Any], expected: str) -> None:
    assert expected in load_error(folder, **arguments)


def test_options_are_checked_before_the_weights_are_read(folder: Path) -> None:
    """Hashing and loading a large model takes minutes."""
    (folder / "model.safetensors").write_bytes(b"")
    for arguments in ({"dtype": "float8"}, {"context_tokens": 1}, {"max_new_tokens": 0}):
        assert "model.safetensors" not in load_error(folder, **arguments)
