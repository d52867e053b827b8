"""Random number generators, each a pure function of a seed, a purpose and a key."""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, purpose: str, *key: int) -> np.random.Generator:
    """The generator for a purpose and a key, such as a step.

    All keys of a purpose must have one length: numpy pads shorter ones with zeros.
    """
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(purpose.encode()), *key]))
