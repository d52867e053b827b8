"""Fixtures for all tests: checkpoints of random models, the demo model, and stories260K if shared/models has it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported: runs its kernels on a CPU

from gradellm_engine.demo_model import CHECKPOINT
from support.tiny_models import save_random_model

STORIES = Path(__file__).parents[2] / "shared" / "models" / "stories260K"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Tiny tensors gain nothing from a second thread, and on a busy machine wait for it.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint folder of a model by name: `demo`, `stories260K`, or a family (a random model of it)."""
    checkpoints: dict[str, Path] = {}

    def path(name: str) -> Path:
        if name == "demo":
            return CHECKPOINT
        if name == "stories260K":
            if not STORIES.exists():
                pytest.skip("shared/models has no stories260K model")
            return STORIES
        if name not in checkpoints:
            checkpoints[name] = save_random_model(tmp_path_factory.mktemp(name), name)
        return checkpoints[name]

    return path
