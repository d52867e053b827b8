"""Which tokens are kept: draws that all methods share, and the masks that they make of probabilities.

A token's uniform r is a pure function of (seed, step, pi, sample, token). Other pis, more samples or a longer text
leave it as it is, and it is the same for every method, for NS and for NC: what differs between two methods is their
scores alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradellm_engine.faithfulness.keep_probabilities import check_pi
from gradellm_engine.utils.rng import stream


def uniforms(seed: int, step: int, pis: Sequence[float], num_samples: int, num_tokens: int) -> NDArray[np.float64]:
    """Uniform draws in [0, 1) of one step, for the metrics at each pi. [P, N, U]

    Args:
        seed: in [0, 2**63).
        step: of the completion.
        pis: each in [0, 1]; told apart by millionths.
        num_samples: masks a pi, N.
        num_tokens: those that may be perturbed, U.

    Raises:
        ValueError: for a pi outside [0, 1].
    """
    for pi in pis:
        check_pi(pi)
    rows = drawn(seed, step, [(pi, sample) for pi in pis for sample in range(num_samples)], num_tokens)
    return rows.reshape(len(pis), num_samples, num_tokens)


def soft_uniforms(seed: int, step: int, num_samples: int, num_tokens: int) -> NDArray[np.float64]:
    """Uniform draws in [0, 1) of one step, for the original metrics, which have no pi. [N, U]"""
    return drawn(seed, step, [(None, sample) for sample in range(num_samples)], num_tokens)


def drawn(seed: int, step: int, keys: Sequence[tuple[float | None, int]], num_tokens: int) -> NDArray[np.float64]:
    """Some of one step's uniform draws, by pi (None for the original metrics) and sample: a row a key. [K, U]"""
    # The decimal that was meant, not its bits: 0.15 and 3 * 0.05 are one pi.
    streams = (
        stream(seed, "soft mask", step, sample)
        if pi is None
        else stream(seed, "mask", step, round(pi * 1_000_000), sample)
        for pi, sample in keys
    )
    rows = [its.random(num_tokens) for its in streams]
    return np.array(rows, dtype=np.float64).reshape(len(keys), num_tokens)


def kept(r: NDArray[np.float64], probs: NDArray[np.float64]) -> NDArray[np.bool_]:
    """What Soft-NS keeps: token i where r_i < s_i^alpha (eq 14). Soft-NC removes those, so it keeps `~kept`.

    Args:
        r: uniform draws. [..., N, U]
        probs: probabilities of being kept. [..., U]

    Returns:
        A mask a sample, True for what is kept. [..., N, U]
    """
    return r < probs[..., None, :]
