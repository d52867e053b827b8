"""Switches of methods that draw random samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.params import Switches
from gradellm_engine.sampling_params import MAX_SEED
from gradellm_engine.utils.rng import stream

MAX_SAMPLES = 10_000


@dataclass(frozen=True)
class SeedSwitches(Switches):
    """Switches of a method that draws random numbers.

    Attributes:
        seed: equal seeds give equal scores.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.seed <= MAX_SEED:
            raise InvalidRequestError("attribution.seed", f"must lie between 0 and 2**63 - 1, was {self.seed}")

    def generator(self, purpose: str, *key: int) -> np.random.Generator:
        """The random generator for a purpose and a key, such as a step."""
        return stream(self.seed, purpose, *key)


@dataclass(frozen=True)
class SampleSwitches(SeedSwitches):
    """Switches of a method that averages over samples.

    Attributes:
        samples: number of samples.
    """

    samples: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.samples <= MAX_SAMPLES:
            raise InvalidRequestError(
                "attribution.samples", f"must lie between 2 and {MAX_SAMPLES:,}, was {self.samples}"
            )
