"""Fixtures of the engine's tests: a loaded model, tokenizers, random tensors; property tests are deterministic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gradellm_engine import Engine

settings.register_profile("engine", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("engine")


@pytest.fixture(scope="session")
def engine(model_path: Callable[[str], Path]) -> Engine:
    """A random Llama with one token a byte."""
    return Engine.load(str(model_path("llama")))


@pytest.fixture(scope="session")
def tokenizers(model_path: Callable[[str], Path]) -> Callable[[str], PreTrainedTokenizerBase]:
    """A model's tokenizer by the model's name."""
    loaded: dict[str, PreTrainedTokenizerBase] = {}

    def tokenizer(name: str) -> PreTrainedTokenizerBase:
        if name not in loaded:
            loaded[name] = AutoTokenizer.from_pretrained(model_path(name))
        return loaded[name]

    return tokenizer


@pytest.fixture(scope="session")
def normal() -> Callable[..., Tensor]:
    """Normally distributed float64 tensors, by seed and shape."""

    def draw(seed: int, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    return draw
