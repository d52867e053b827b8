"""How well scores agree with the tokens that people named as the reason.

This is not faithfulness: a model may have had other reasons. A rationale of no tokens has no recall, and with one of
all tokens every order of them is perfect; both are refused, for neither says anything about scores.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradellm_engine.faithfulness.insertion_deletion import ranked
from gradellm_engine.faithfulness.keep_probabilities import finite_scores


def average_precision(scores: NDArray[np.floating], rationale: NDArray[np.bool_]) -> float:
    """AUPRC: the sum over thresholds of precision times what recall gains; ties count together.

    Args:
        scores: of any scale and sign. [U]
        rationale: True for tokens that belong to it. [U]

    Raises:
        ValueError: where scores are none or not finite, or the rationale holds no token, all, or another number.
    """
    scores = finite_scores(scores)
    _check(scores, rationale)
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))  # the last of each run of equal scores
    hits = np.cumsum(rationale[order])[ends]
    precision, recall = hits / (ends + 1), hits / rationale.sum()
    return float((precision * np.diff(recall, prepend=0.0)).sum())


def token_f1(scores: NDArray[np.floating], rationale: NDArray[np.bool_], seed: int, step: int) -> float:
    """F1 of the k highest scores, k the rationale's number of tokens.

    As many are chosen as there are, so precision, recall and F1 are one number.

    Args:
        scores: of any scale and sign. [U]
        rationale: True for tokens that belong to it. [U]
        seed: in [0, 2**63), of ties, which are broken as in insertion and deletion.
        step: of the completion.

    Raises:
        ValueError: where scores are none or not finite, or the rationale holds no token, all, or another number.
    """
    scores = finite_scores(scores)
    _check(scores, rationale)
    k = int(rationale.sum())
    return float(rationale[ranked(scores, seed, step)[:k]].mean())


def _check(scores: NDArray[np.float64], rationale: NDArray[np.bool_]) -> None:
    if rationale.dtype != np.bool_ or rationale.shape != scores.shape:
        raise ValueError(
            f"a rationale must say True or False for each of {len(scores)} tokens, "
            f"it was {rationale.dtype} of shape {rationale.shape}"
        )
    if not rationale.any():
        raise ValueError("the rationale holds none of the tokens, so there is no recall")
    if rationale.all():
        raise ValueError("the rationale holds all tokens, so every order of them is perfect")
