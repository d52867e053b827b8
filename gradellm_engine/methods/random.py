"""Random scores, U(0, 1): the reference that other methods are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradellm_engine.methods.sampling_params import SeedSwitches


@dataclass(frozen=True)
class Random(SeedSwitches):
    """Switches: seed."""

    name: ClassVar[str] = "random"


def scores(switches: Random, step: int, num_tokens: int) -> Tensor:
    """Scores of a step's prefix, a pure function of (seed, step). [num_tokens]"""
    return torch.tensor(switches.generator("random", step).random(num_tokens), dtype=torch.float32)
