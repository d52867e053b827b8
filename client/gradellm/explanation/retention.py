"""From scores to keep probabilities, without numpy: the paper's figures 3 to 6.

Scores of different scales are made comparable by the share of tokens that they keep: min-max normalised to 0..1, they
are raised to a power alpha, such that their mean is pi. The server's evaluation does the same.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gradellm.errors import InvalidExplanationError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["retention_probs"]

_MARGIN = 1e-6  # normalised scores are clamped to this distance from 0 and 1
_BISECTIONS = 64


def retention_probs(scores: Sequence[float], pi: float) -> list[float]:
    """Return the keep probability of each token; their mean is pi.

    Raises InvalidExplanationError for no scores, scores that are not finite, or pi outside of (0, 1).
    """
    if not 0 < pi < 1:
        raise InvalidExplanationError(f"pi must be between 0 and 1, not {pi}")
    if not scores or not all(map(math.isfinite, scores)):
        raise InvalidExplanationError("retention: needs finite scores of at least one token")
    low, high = min(scores) / 2, max(scores) / 2  # halved, because the difference of two finite numbers may overflow
    if low == high:
        return [pi] * len(scores)
    unit = [min(1 - _MARGIN, max(_MARGIN, (score / 2 - low) / (high - low))) for score in scores]
    logs = [math.log(score) for score in unit]
    below, above = math.log(math.log(pi) / min(logs)), math.log(math.log(pi) / max(logs))
    for _ in range(_BISECTIONS):
        middle = (below + above) / 2
        if math.fsum(_powers(logs, middle)) > pi * len(logs):
            below = middle
        else:
            above = middle
    return _powers(logs, (below + above) / 2)


def _powers(logs: Sequence[float], log_alpha: float) -> list[float]:
    """Return s^alpha for each log(s)."""
    alpha = math.exp(log_alpha)
    return [math.exp(alpha * log) for log in logs]
