"""A tiny model whose decode steps are traced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradellm_engine import Engine
from gradellm_engine.compilation.trace_cache import CpuTraceCache
from gradellm_engine.model.runner import ModelRunner


@pytest.fixture(scope="package")
def load(model_path: Callable[[str], Path]) -> Callable[..., Engine]:
    """Loads a family's random model."""

    def load(family: str, **kwargs: Any) -> Engine:
        return Engine.load(str(model_path(family)), **kwargs)

    return load


@pytest.fixture
def runner(load: Callable[..., Engine]) -> ModelRunner:
    return load("llama").model.runner


@pytest.fixture
def traces(runner: ModelRunner) -> CpuTraceCache:
    """The traces of `runner`, which run its decode steps without launch graphs."""
    assert runner.cpu_traces is not None
    runner.launch_graphs = None
    return runner.cpu_traces
