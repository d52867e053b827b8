"""Whether another engine runs the same model: its log-probabilities of the tokens that it chose, compared with ours.

An error of standard deviation s in the logits changes the log-probability of a token of probability p by about
s (1 - p): hardly where the model is certain. From d, the differences, the noise in the logits is estimated as

    noise = sqrt(sum d² / sum ((1 - p)² + MIN_DOUBT²))

which is comparable between prompts. Engines that compute with the same weights differ by the rounding of their numbers;
`TOLERANCES` has what that amounts to for each format, measured by `python -m gradellm_bench.following.agreement`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

MIN_DOUBT = 0.01  # of 1 - p: log-probabilities close to 0 are rounded, too
MIN_COMPARED_TOKENS = 8  # of a verdict other than `different`
FEW_TOKENS_MARGIN = 2.0  # the tolerance of N tokens is larger by this over sqrt(N)


class NumberFormat(StrEnum):
    """The numbers that an engine computes with, or stores weights in, whichever are coarser."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FP8 = "fp8"
    INT8 = "int8"
    INT4 = "int4"


class Verdict(StrEnum):
    """Whether another engine runs the same model."""

    UNKNOWN = "unknown"
    """Nothing, or too little, was compared."""
    SAME = "same"
    COMPATIBLE = "compatible"
    """The differences are those of its number format, which would hide another model's as well."""
    DIFFERENT = "different"


TOLERANCES: Mapping[NumberFormat, float] = {
    NumberFormat.FLOAT32: 0.002,
    NumberFormat.FLOAT16: 0.02,
    NumberFormat.BFLOAT16: 0.1,
    NumberFormat.FP8: 0.4,
    NumberFormat.INT8: 0.4,
    NumberFormat.INT4: 1.2,
}
"""The largest noise of a format, in nats."""
PROVING = frozenset({NumberFormat.FLOAT32, NumberFormat.FLOAT16, NumberFormat.BFLOAT16})
"""Formats whose noise is smaller than what another checkpoint changes."""


def number_format(dtype: str, quantization: str) -> NumberFormat:
    """The coarser of the formats that a model's weights are stored in, and its activations have.

    Args:
        dtype: of the activations; float64 counts as float32.
        quantization: of the weights: none, int8, nf4, or a checkpoint's own method, which counts as 4 bits.
    """
    if quantization == "none":
        return NumberFormat.FLOAT32 if dtype == "float64" else NumberFormat(dtype)
    return NumberFormat.INT8 if quantization == "int8" else NumberFormat.INT4


@dataclass(frozen=True)
class Agreement:
    """Differences between given and own log-probabilities, of a chunk or of a whole completion.

    Attributes:
        num_tokens: tokens that were compared.
        largest: the largest difference by magnitude, in nats.
        total: the sum of magnitudes.
        squares: the sum of squares.
        doubt: the sum of (1 - p)² + MIN_DOUBT².
    """

    num_tokens: int = 0
    largest: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    doubt: float = 0.0

    @classmethod
    def of(cls, given: float, own: float) -> Agreement:
        """The agreement on one token, from its two log-probabilities; of none where `given` is NaN."""
        if math.isnan(given):
            return cls()
        difference = abs(given - own)
        doubt = -math.expm1(min(0.0, own))  # 1 - p
        return cls(1, difference, difference, difference**2, doubt**2 + MIN_DOUBT**2)

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            self.num_tokens + other.num_tokens,
            max(self.largest, other.largest),
            self.total + other.total,
            self.squares + other.squares,
            self.doubt + other.doubt,
        )

    @property
    def mean(self) -> float:
        """The mean difference by magnitude, in nats; 0 where nothing was compared."""
        return self.total / self.num_tokens if self.num_tokens else 0.0

    @property
    def noise(self) -> float:
        """The estimated standard deviation of the difference of the logits, in nats; 0 where nothing was compared."""
        return math.sqrt(self.squares / self.doubt) if self.doubt else 0.0

    def verdict(self, theirs: NumberFormat, ours: NumberFormat) -> Verdict:
        """Whether the differences are those of two engines with the same model and these number formats."""
        if not self.num_tokens:
            return Verdict.UNKNOWN
        tolerance = max(TOLERANCES[theirs], TOLERANCES[ours]) * (1 + FEW_TOKENS_MARGIN / math.sqrt(self.num_tokens))
        if self.noise > tolerance:
            return Verdict.DIFFERENT
        if self.num_tokens < MIN_COMPARED_TOKENS:
            return Verdict.UNKNOWN
        return Verdict.SAME if {theirs, ours} <= PROVING else Verdict.COMPATIBLE
