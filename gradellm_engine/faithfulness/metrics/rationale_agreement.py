"""Agreement of scores with a human rationale: AUPRC and token-F1.

This is plausibility, not faithfulness: the model may have other reasons than people. A rationale that holds none or all
of U is refused, because recall is undefined for the former, and every ranking perfect for the latter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradellm_engine.faithfulness.metrics.insertion_deletion import ranking
from gradellm_engine.faithfulness.metrics.keep_probabilities import finite_scores


def average_precision(scores: NDArray[np.floating], rationale: NDArray[np.bool_]) -> float:
    """AUPRC: the sum over thresholds of precision times the gain in recall; tied scores share one threshold.

    Args:
        scores: of any scale and sign. [U]
        rationale: True for tokens of the rationale. [U]

    Raises:
        ValueError: where there are no scores, some are not finite, the rationale has another shape, or it holds none or
            all of the tokens.
    """
    scores = finite_scores(scores)
    _check(scores, rationale)
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))  # last index of each run of equal scores
    hits = np.cumsum(rationale[order])[ends]
    precision, recall = hits / (ends + 1), hits / rationale.sum()
    return float((precision * np.diff(recall, prepend=0.0)).sum())


def token_f1(scores: NDArray[np.floating], rationale: NDArray[np.bool_], seed: int, step: int) -> float:
    """F1 of the k highest scores, where k is the number of rationale tokens: precision, recall and F1 are then equal.

    Args:
        scores: of any scale and sign. [U]
        rationale: True for tokens of the rationale. [U]
        seed: in [0, 2**63), of ties, which are broken as in insertion and deletion.
        step: index of the explained token in the completion.

    Raises:
        ValueError: where there are no scores, some are not finite, the rationale has another shape, or it holds none or
            all of the tokens.
    """
    scores = finite_scores(scores)
    _check(scores, rationale)
    k = int(rationale.sum())
    return float(rationale[ranking(scores, seed, step)[:k]].mean())


def _check(scores: NDArray[np.float64], rationale: NDArray[np.bool_]) -> None:
    if rationale.dtype != np.bool_ or rationale.shape != scores.shape:
        raise ValueError(
            f"a rationale must be a bool vector over {len(scores)} tokens; "
            f"it was {rationale.dtype} of shape {rationale.shape}"
        )
    if not rationale.any():
        raise ValueError("the rationale holds none of the tokens, so recall is undefined")
    if rationale.all():
        raise ValueError("the rationale holds all tokens, so every ranking is perfect")
