"""Models with every type of rotary frequencies, by the name of the case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from gradellm_engine import Engine
from support.rotary_models import save


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint folder of a case."""
    return cache(lambda name: save(tmp_path_factory.mktemp("model"), name))


@pytest.fixture(scope="package")
def load_case(checkpoint: Callable[[str], Path]) -> Callable[..., Engine]:
    """The engine of a case, loaded once for each set of options."""
    return cache(lambda name, **options: Engine.load(str(checkpoint(name)), dtype="float64", **options))


@pytest.fixture(scope="package")
def own_logits(checkpoint: Callable[[str], Path]) -> Callable[[str, Sequence[int]], Tensor]:
    """The logits of Transformers' own full pass over a sequence."""

    @cache
    def reference(name: str) -> Any:
        # Eager attention takes its softmax in float32.
        model = AutoModelForCausalLM.from_pretrained(checkpoint(name), dtype=torch.float64, attn_implementation="sdpa")
        return model.eval()

    def logits(name: str, ids: Sequence[int]) -> Tensor:
        with torch.no_grad():
            result: Tensor = reference(name)(torch.tensor([list(ids)]), use_cache=False).logits[0, -1]
        return result

    return logits
