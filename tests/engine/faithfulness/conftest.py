"""Models that the tests of evaluations share, and the plain reference of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from gradellm_engine import Engine
from gradellm_engine.core import post_hoc_runner
from gradellm_engine.methods import selected_steps
from gradellm_engine.model.families import FAMILIES
from support.faithfulness.reference import Reference
from support.tiny_models import save_random_model

ModelPath = Callable[[str], Path]
Engines = Callable[..., Engine]


@pytest.fixture(scope="session")
def path_of(model_path: ModelPath, tmp_path_factory: pytest.TempPathFactory) -> ModelPath:
    """A model's folder; random models have weights large enough that tokens differ."""

    @cache
    def path(name: str) -> Path:
        if name not in FAMILIES:
            return model_path(name)
        return save_random_model(tmp_path_factory.mktemp(name), name, seed=1, initializer_range=0.15)

    return path


@pytest.fixture(scope="session")
def load(path_of: ModelPath) -> Engines:
    """A model by name and dtype, loaded once."""
    return cache(lambda name, dtype="float32": Engine.load(str(path_of(name)), dtype=dtype, threads=1))


@pytest.fixture(scope="session")
def reference(path_of: ModelPath) -> Callable[[str], Reference]:
    return cache(lambda name: Reference(path_of(name)))


@pytest.fixture
def explained(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], Tensor]:
    """The scores that methods gave to evaluations, by switches and step."""
    recorded: dict[tuple[str, int], Tensor] = {}
    scores_at = selected_steps.scores_at

    def recording(model: Any, method: Any, switches: Any, *args: Any) -> Iterator[Any]:
        for result in scores_at(model, method, switches, *args):
            if isinstance(result, tuple):
                recorded[str(switches), result[0]] = result[1]
            yield result

    monkeypatch.setattr(post_hoc_runner, "scores_at", recording)
    return recorded
