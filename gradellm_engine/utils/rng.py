"""Streams of random numbers, each a pure function of a seed, a purpose and a key."""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, purpose: str, *key: int) -> np.random.Generator:
    """The stream for a purpose and a key, such as a step.

    A purpose has keys of one length only: numpy takes missing ones for zeros.
    """
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(purpose.encode()), *key]))
