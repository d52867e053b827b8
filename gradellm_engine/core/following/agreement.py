"""Whether another engine runs the same model: its log-probabilities of the tokens that it chose, compared with ours.

Independent errors of standard deviation s in the logits change the log-probability of a token t by an error of variance
s² v, where p is the model's distribution:

    v = (1 - p[t])² + sum over the other tokens of p² = 1 - 2 p[t] + sum p²

It is close to 0 where the model is certain. From N differences d the noise in the logits is estimated as

    noise = sqrt(pi / 2) mean of |d| / sqrt(v + MIN_VARIANCE)

which is comparable between prompts; a mean of magnitudes is steadier than one of squares. The log-probabilities of the
most probable other tokens are compared as well, by rank, as OpenAI's API tells no ids of them: they vary where the
chosen token is certain. N counts all of them. Engines with the same weights differ by the rounding of their numbers,
which is no larger where both round: they round the same numbers. `TOLERANCES` has what that amounts to, chosen and
measured by `python -m gradellm_bench.following.agreement`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from gradellm_engine.core.sampler import ComparedLogprobs

MIN_VARIANCE = 1e-3  # of v: log-probabilities close to 0 are rounded, too
GAUSSIAN = math.sqrt(math.pi / 2)  # a standard deviation over the mean magnitude
MIN_COMPARED_TOKENS = 8  # of a verdict other than `different`
MARGIN = 4.0  # the tolerance of N log-probabilities is larger by this over sqrt(N)


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
    NumberFormat.FLOAT32: 0.001,
    NumberFormat.FLOAT16: 0.01,
    NumberFormat.BFLOAT16: 0.0585,
    NumberFormat.FP8: 0.5,
    NumberFormat.INT8: 0.5,
    NumberFormat.INT4: 1.5,
}
"""The largest noise of a format, in nats, over infinitely many log-probabilities."""
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


@dataclass(frozen=True, slots=True)
class GivenLogprobs:
    """Another engine's log-probabilities at a token that it chose, before temperature, top_k and top_p.

    Attributes:
        chosen: the token's; NaN where it is not known.
        alternatives: those of the engine's most probable other tokens, the largest first.
    """

    chosen: float = math.nan
    alternatives: tuple[float, ...] = ()

    @property
    def is_known(self) -> bool:
        """Whether there is anything to compare."""
        return not math.isnan(self.chosen)


@dataclass(frozen=True)
class Agreement:
    """Differences between given and own log-probabilities, of a chunk or of a whole completion.

    Attributes:
        num_tokens: tokens that were compared.
        largest: the largest difference of a chosen token by magnitude, in nats.
        total: the sum of these magnitudes.
        num_logprobs: log-probabilities that were compared, alternatives included.
        scaled: the sum of the magnitudes of all these differences, each over sqrt(v + MIN_VARIANCE).
    """

    num_tokens: int = 0
    largest: float = 0.0
    total: float = 0.0
    num_logprobs: int = 0
    scaled: float = 0.0

    @classmethod
    def of(cls, given: GivenLogprobs, own: ComparedLogprobs) -> Agreement:
        """The agreement on one token; of none where its log-probability is not known."""
        if not given.is_known:
            return cls()
        difference = abs(given.chosen - own.chosen)
        pairs = [(given.chosen, own.chosen), *zip(given.alternatives, own.alternatives, strict=False)]
        scaled = sum(_scaled(theirs, ours, own.sum_of_squares) for theirs, ours in pairs)
        return cls(1, difference, difference, len(pairs), scaled)

    @classmethod
    def resumed(cls, num_tokens: int, largest: float, mean: float, num_logprobs: int, noise: float) -> Agreement:
        """The agreement with these figures."""
        return cls(num_tokens, largest, mean * num_tokens, num_logprobs, noise * num_logprobs / GAUSSIAN)

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            self.num_tokens + other.num_tokens,
            max(self.largest, other.largest),
            self.total + other.total,
            self.num_logprobs + other.num_logprobs,
            self.scaled + other.scaled,
        )

    @property
    def mean(self) -> float:
        """The mean difference by magnitude, in nats; 0 where nothing was compared."""
        return self.total / self.num_tokens if self.num_tokens else 0.0

    @property
    def noise(self) -> float:
        """The estimated standard deviation of the difference of the logits, in nats; 0 where nothing was compared."""
        return GAUSSIAN * self.scaled / self.num_logprobs if self.num_logprobs else 0.0

    def verdict(self, theirs: NumberFormat, ours: NumberFormat) -> Verdict:
        """Whether the differences are those of two engines with the same model and these number formats."""
        if not self.num_tokens:
            return Verdict.UNKNOWN
        tolerance = max(TOLERANCES[theirs], TOLERANCES[ours]) * (1 + MARGIN / math.sqrt(self.num_logprobs))
        if self.noise > tolerance:
            return Verdict.DIFFERENT
        if self.num_tokens < MIN_COMPARED_TOKENS:
            return Verdict.UNKNOWN
        return Verdict.SAME if {theirs, ours} <= PROVING else Verdict.COMPATIBLE


def _scaled(given: float, own: float, sum_of_squares: float) -> float:
    """The magnitude of a difference of log-probabilities over its standard deviation for noise of 1 nat."""
    variance = max(0.0, 1 - 2 * math.exp(min(0.0, own)) + sum_of_squares)
    return abs(given - own) / math.sqrt(variance + MIN_VARIANCE)
