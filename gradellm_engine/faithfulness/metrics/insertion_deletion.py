"""Insertion and deletion (appendix C): the top tokens at each of 20 steps, and the share of flips.

Only the order of scores counts. Ties are broken by one seeded permutation, which all methods share, so that a token's
position in the text has no influence.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradellm_engine.faithfulness.metrics.keep_probabilities import finite_scores
from gradellm_engine.utils.rng import stream

STEPS = 20


def ranking(attribution: NDArray[np.floating], seed: int, step: int) -> NDArray[np.intp]:
    """Indexes of tokens by score, the highest first; ties by the permutation of (seed, step). [U] -> [U]

    Args:
        attribution: of any scale and sign. [U]
        seed: in [0, 2**63).
        step: index of the explained token in the completion.

    Raises:
        ValueError: where there are no scores, or some are not finite.
    """
    scores = finite_scores(attribution)
    ties = stream(seed, "ties", step).permutation(len(scores))
    return np.lexsort((ties, -scores))  # the last key counts first


def top_counts(num_tokens: int) -> tuple[int, ...]:
    """Size of the top set at each step j = 1..20: ceil(0.05 j n), in integer arithmetic. [20]"""
    return tuple(-(-j * num_tokens // STEPS) for j in range(1, STEPS + 1))


def top_sets(attribution: NDArray[np.floating], seed: int, step: int) -> tuple[NDArray[np.intp], ...]:
    """The top tokens at each of 20 steps: deletion removes them, insertion removes all except them.

    Each set includes the previous one; the last holds all tokens. With fewer than 20 tokens, some sets are equal.

    Args:
        attribution: of any scale and sign. [U]
        seed: in [0, 2**63), of ties.
        step: index of the explained token in the completion.

    Returns:
        Ascending indexes into U, one array a step. 20 of [count]

    Raises:
        ValueError: where there are no scores, or some are not finite.
    """
    order = ranking(attribution, seed, step)
    return tuple(np.sort(order[:count]) for count in top_counts(len(order)))


def flip_auc(flips: NDArray[np.bool_]) -> float:
    """The share of the 20 steps at which the predicted label differs from the original one. [20]

    Raises:
        ValueError: where there are not 20 steps.
    """
    if flips.shape != (STEPS,):
        raise ValueError(f"flips need one value for each of {STEPS} steps; their shape was {flips.shape}")
    return float(flips.mean())
