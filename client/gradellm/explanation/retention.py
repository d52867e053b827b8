"""From scores to probabilities of being kept, without numpy: what the paper's figures 3 to 6 show.

Scores of different scales are compared by how much of the text they keep: brought to 0..1 they are raised to a power
alpha of their own, so that a share pi of the tokens is kept in the mean. The server's evaluation does the same.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gradellm.errors import InvalidExplanationError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["retention_probs"]

_MARGIN = 1e-6  # scores keep this distance from 0 and 1
_HALVINGS = 64


def retention_probs(scores: Sequence[float], pi: float) -> list[float]:
    """Return with what probability each token is kept, pi in the mean.

    Raises InvalidExplanationError where there are no scores, one is not finite, or pi is not between 0 and 1.
    """
    if not 0 < pi < 1:
        raise InvalidExplanationError(f"pi must lie between 0 and 1, not {pi}")
    if not scores or not all(map(math.isfinite, scores)):
        raise InvalidExplanationError("retention: needs one finite score a token, of one token at least")
    low, high = min(scores) / 2, max(scores) / 2  # the difference of two finite numbers may not be finite
    if low == high:
        return [pi] * len(scores)
    unit = [min(1 - _MARGIN, max(_MARGIN, (score / 2 - low) / (high - low))) for score in scores]
    logs = [math.log(score) for score in unit]
    below, above = math.log(math.log(pi) / min(logs)), math.log(math.log(pi) / max(logs))
    for _ in range(_HALVINGS):
        middle = (below + above) / 2
        if math.fsum(_powers(logs, middle)) > pi * len(logs):
            below = middle
        else:
            above = middle
    return _powers(logs, (below + above) / 2)


def _powers(logs: Sequence[float], log_alpha: float) -> list[float]:
    """s^alpha, of log(s)."""
    alpha = math.exp(log_alpha)
    return [math.exp(alpha * log) for log in logs]
