"""Random masks: uniforms that all methods share, and the tokens that they keep.

A token's uniform r is a pure function of (seed, step, pi, sample, token), the same for every method and for NS and NC.
More pis, more samples or a longer text do not change it. Masks of two methods therefore differ only by their scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradellm_engine.faithfulness.metrics.keep_probabilities import check_pi
from gradellm_engine.utils.rng import stream


def uniforms(seed: int, step: int, pis: Sequence[float], num_samples: int, num_tokens: int) -> NDArray[np.float64]:
    """Uniforms in [0, 1) of one step, for pi-Soft metrics. [P, N, U]

    Args:
        seed: in [0, 2**63).
        step: index of the explained token in the completion.
        pis: each in [0, 1]; pis that agree to a millionth share their uniforms.
        num_samples: masks a pi, N.
        num_tokens: size of U.

    Raises:
        ValueError: for a pi outside [0, 1].
    """
    for pi in pis:
        check_pi(pi)
    rows = uniform_rows(seed, step, [(pi, sample) for pi in pis for sample in range(num_samples)], num_tokens)
    return rows.reshape(len(pis), num_samples, num_tokens)


def soft_uniforms(seed: int, step: int, num_samples: int, num_tokens: int) -> NDArray[np.float64]:
    """Uniforms in [0, 1) of one step, for the original metrics, which have no pi. [N, U]"""
    return uniform_rows(seed, step, [(None, sample) for sample in range(num_samples)], num_tokens)


def uniform_rows(
    seed: int, step: int, keys: Sequence[tuple[float | None, int]], num_tokens: int
) -> NDArray[np.float64]:
    """Uniforms of one step for some keys (pi, sample), pi None for the original metrics. [K, U]"""
    # Pis are rounded to millionths, so that 0.15 and 3 * 0.05, which differ in float64, are one pi.
    generators = (
        stream(seed, "soft mask", step, sample)
        if pi is None
        else stream(seed, "mask", step, round(pi * 1_000_000), sample)
        for pi, sample in keys
    )
    rows = [generator.random(num_tokens) for generator in generators]
    return np.array(rows, dtype=np.float64).reshape(len(keys), num_tokens)


def keep_mask(r: NDArray[np.float64], probs: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The tokens that Soft-NS keeps and Soft-NC removes: token i where r_i < s_i^alpha (eq 14).

    Args:
        r: uniforms. [..., N, U]
        probs: retaining probabilities. [..., U]

    Returns:
        One mask a sample. [..., N, U], bool
    """
    return r < probs[..., None, :]
