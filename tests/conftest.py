"""Models that tests share: random ones made once, the shipped one, and a public one that may lie beside the project."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton: its kernels run on a CPU then

from gradellm_engine.demo_model import CHECKPOINT
from support.tiny_models import save_random_model

STORIES = Path(__file__).parents[2] / "shared" / "models" / "stories260K"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Tiny tensors gain nothing from a second thread, and wait for it where the machine is busy.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where a model lies: `demo`, `stories260K`, or a family's random model."""
    made: dict[str, Path] = {}

    def path(name: str) -> Path:
        if name == "demo":
            return CHECKPOINT
        if name == "stories260K":
            if not STORIES.exists():
                pytest.skip("the stories260K model does not lie beside the project")
            return STORIES
        if name not in made:
            made[name] = save_random_model(tmp_path_factory.mktemp(name), name)
        return made[name]

    return path
