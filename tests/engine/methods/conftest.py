"""Random models in this engine and in Transformers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from gradellm_engine import Engine
from support.methods.reference_case import Case
from support.tiny_models import save_random_model


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    """A family's random model by name and dtype, with weights large enough that tokens differ."""

    @cache
    def path(family: str) -> Path:
        return save_random_model(tmp_path_factory.mktemp(family), family, seed=1, initializer_range=0.15)

    @cache
    def make(family: str, dtype: str = "float64") -> Case:
        reference = AutoModelForCausalLM.from_pretrained(path(family), dtype=torch.float64, attn_implementation="eager")
        return Case(Engine.load(str(path(family)), dtype=dtype), reference.eval())

    return make
