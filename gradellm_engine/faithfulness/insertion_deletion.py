"""Insertion and deletion (appendix C): which tokens go, or come, at each of 20 steps.

Only the order of scores counts. Ties are broken by one seeded permutation, the same for all methods: neither a token's
place in the text nor a method decides.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradellm_engine.faithfulness.keep_probabilities import finite_scores
from gradellm_engine.utils.rng import stream

STEPS = 20


def ranked(attribution: NDArray[np.floating], seed: int, step: int) -> NDArray[np.intp]:
    """Tokens by score, the highest first; ties by the permutation of (seed, step). [U] -> [U]

    Args:
        attribution: of any scale and sign. [U]
        seed: in [0, 2**63).
        step: of the completion.

    Raises:
        ValueError: where there are no scores, or some are not finite.
    """
    scores = finite_scores(attribution)
    ties = stream(seed, "ties", step).permutation(len(scores))
    return np.lexsort((ties, -scores))  # the last key counts first


def counts(num_tokens: int) -> tuple[int, ...]:
    """How many tokens have gone, or come, after each step j = 1..20: ceil(0.05 j n), in integers."""
    return tuple(-(-j * num_tokens // STEPS) for j in range(1, STEPS + 1))


def top_sets(attribution: NDArray[np.floating], seed: int, step: int) -> tuple[NDArray[np.intp], ...]:
    """The tokens that deletion has taken away, and insertion has put back, at each of 20 steps.

    Deletion takes them from the whole text, insertion puts them into the emptied one. Each set holds the one before,
    and the last holds all. Of fewer than 20 tokens, some sets are alike.

    Args:
        attribution: of any scale and sign. [U]
        seed: in [0, 2**63), of ties.
        step: of the completion.

    Returns:
        Indexes into U, in the text's order, an array a step.

    Raises:
        ValueError: where there are no scores, or some are not finite.
    """
    order = ranked(attribution, seed, step)
    return tuple(np.sort(order[:count]) for count in counts(len(order)))


def flip_auc(flips: NDArray[np.bool_]) -> float:
    """The share of the 20 steps at which the predicted label differs from the original one. [20]

    Raises:
        ValueError: for another number of steps.
    """
    if flips.shape != (STEPS,):
        raise ValueError(f"flips must be one for each of {STEPS} steps, their shape was {flips.shape}")
    return float(flips.mean())
