"""Hellinger distances between next-token distributions, and pi-Soft-NS and pi-Soft-NC of them (eqs 15 to 18 and 20).

P is the distribution for the original embeddings, P_0 with the embeddings of U zeroed, P' with those that NS keeps, P''
with those that NC keeps. Distances are relative to the baseline H(P, P_0); a step whose baseline is below MIN_BASELINE
is skipped.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MIN_BASELINE = 1e-6


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over the whole vocabulary, float32 or better. [..., V] -> [..., V]

    It is written out because `sum` adds pairwise. torch's float32 softmax on a CPU adds sequentially: over 128,000
    tokens its probabilities miss a sum of one by 3e-6, a distance as large as MIN_BASELINE.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


def hellinger(P: Tensor, Q: Tensor) -> Tensor:
    """H(P, Q) = sqrt(sum (sqrt p - sqrt q)^2 / 2) (eq 16), in [0, 1]; float32 or better.

    The equivalent form sqrt(1 - sum sqrt(p q)) would lose half of the digits where P and Q are close.

    Args:
        P: probabilities. [..., V]
        Q: probabilities, of a shape that broadcasts with P's. [..., V]

    Returns:
        Distances. [...]
    """
    dtype = torch.promote_types(torch.promote_types(P.dtype, Q.dtype), torch.float32)
    gaps = P.to(dtype).sqrt() - Q.to(dtype).sqrt()
    return (gaps.square().sum(-1).sqrt() / math.sqrt(2)).clamp(0, 1)  # rounding may exceed 1


def pi_soft_ns(distance: NDArray[np.float64], baseline: float) -> NDArray[np.float64]:
    """Sufficiency of the kept tokens: max(0, H(P, P_0) - H(P, P')) / H(P, P_0) (eq 17).

    Args:
        distance: H(P, P'). [...]
        baseline: H(P, P_0).

    Returns:
        In [0, 1]. [...]

    Raises:
        ValueError: for a baseline below MIN_BASELINE.
    """
    _check_baseline(baseline)
    return np.maximum(0.0, baseline - np.asarray(distance, dtype=np.float64)) / baseline


def pi_soft_nc(distance: NDArray[np.float64], baseline: float) -> NDArray[np.float64]:
    """Comprehensiveness of the removed tokens: H(P, P'') / H(P, P_0) (eq 18).

    It exceeds 1, and is not clamped, where the remaining tokens mislead the model more than no tokens do.

    Args:
        distance: H(P, P''). [...]
        baseline: H(P, P_0).

    Returns:
        At least 0. [...]

    Raises:
        ValueError: for a baseline below MIN_BASELINE.
    """
    _check_baseline(baseline)
    return np.asarray(distance, dtype=np.float64) / baseline


def _check_baseline(baseline: float) -> None:
    if not baseline >= MIN_BASELINE:  # also refuses NaN
        raise ValueError(f"the baseline H(P, P_0) is {baseline}, less than {MIN_BASELINE}: skip this step")
