"""A checkpoint to damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def folder(model_path: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the tiny Llama."""
    return Path(shutil.copytree(model_path("llama"), tmp_path / "model"))
