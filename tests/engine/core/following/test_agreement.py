"""Agreement of log-probabilities: its sums, the noise that it estimates, and verdicts."""

from __future__ import annotations

import math

import pytest
import torch

from gradellm_engine.core.following.agreement import (
    MARGIN,
    MIN_COMPARED_TOKENS,
    MIN_VARIANCE,
    TOLERANCES,
    Agreement,
    GivenLogprobs,
    NumberFormat,
    Verdict,
    number_format,
)
from gradellm_engine.core.sampler import ComparedLogprobs, Distribution


def of(given: float, own: float, sum_of_squares: float) -> Agreement:
    return Agreement.of(GivenLogprobs(given), ComparedLogprobs(own, (), sum_of_squares))


def test_one_token() -> None:
    own = math.log(0.25)
    agreement = of(-1.5, own, 0.25**2 + 0.75**2)
    difference = abs(-1.5 - own)
    assert (agreement.num_tokens, agreement.largest, agreement.total) == (1, difference, difference)
    variance = 0.75**2 + 0.75**2  # of the token, and of the only other one
    assert agreement.scaled == pytest.approx(difference / math.sqrt(variance + MIN_VARIANCE))
    assert of(math.nan, -1.0, 0.5) == Agreement()
    assert of(0.0, 1e-7, 1.0).scaled == pytest.approx(1e-7 / math.sqrt(MIN_VARIANCE))  # rounding: p above 1


def test_alternatives() -> None:
    """They count for the noise alone, as far as both sides tell them."""
    squares = 0.5**2 + 0.3**2 + 0.2**2
    own = ComparedLogprobs(math.log(0.5), (math.log(0.3), math.log(0.2)), squares)
    agreement = Agreement.of(GivenLogprobs(math.log(0.5), (math.log(0.3) - 0.1,)), own)
    assert (agreement.num_tokens, agreement.num_logprobs, agreement.total) == (1, 2, 0.0)
    assert agreement.scaled == pytest.approx(0.1 / math.sqrt(1 - 2 * 0.3 + squares + MIN_VARIANCE))


def test_sums() -> None:
    total = of(-1.0, -1.5, 0.3) + of(-2.0, -1.0, 0.3) + Agreement()
    assert (total.num_tokens, total.largest, total.mean) == (2, 1.0, 0.75)
    assert total.noise == pytest.approx(math.sqrt(math.pi / 2) * total.scaled / 2)
    assert (Agreement().mean, Agreement().noise) == (0.0, 0.0)
    resumed = Agreement.resumed(total.num_tokens, total.largest, total.mean, total.num_logprobs, total.noise)
    assert resumed.scaled == pytest.approx(total.scaled)
    assert resumed.total == pytest.approx(total.total)


@pytest.mark.parametrize("scale", [0.5, 2.0, 6.0], ids=["unsure", "between", "certain"])
@pytest.mark.parametrize("noise", [0.01, 0.1])
@pytest.mark.parametrize("num_alternatives", [0, 4])
def test_noise_is_that_of_the_logits(scale: float, noise: float, num_alternatives: int) -> None:
    """Whatever the model's certainty, of which the differences of log-probabilities depend."""
    torch.manual_seed(3)
    total = Agreement()
    for _ in range(400):
        logits = scale * torch.randn(50, dtype=torch.float64)
        other = logits + noise * torch.randn(50, dtype=torch.float64)
        token = int(torch.multinomial(logits.softmax(-1), 1))
        theirs, own = (Distribution.of(each[None])[0].compared(token, num_alternatives) for each in (other, logits))
        total += Agreement.of(GivenLogprobs(theirs.chosen, theirs.alternatives), own)
    assert total.num_logprobs == 400 * (1 + num_alternatives)
    assert total.noise == pytest.approx(noise, rel=0.2)


@pytest.mark.parametrize("theirs", NumberFormat)
@pytest.mark.parametrize("ours", NumberFormat)
def test_verdicts(theirs: NumberFormat, ours: NumberFormat) -> None:
    tolerance = max(TOLERANCES[theirs], TOLERANCES[ours])
    n = 32
    allowed = tolerance * (1 + MARGIN / math.sqrt(n))

    def verdict(noise: float, count: int = n) -> Verdict:
        return Agreement.resumed(count, 0.0, 0.0, count, noise).verdict(theirs, ours)

    assert verdict(1.01 * allowed) is Verdict.DIFFERENT
    coarse = {NumberFormat.FP8, NumberFormat.INT8, NumberFormat.INT4}
    assert verdict(0.99 * allowed) is (Verdict.COMPATIBLE if {theirs, ours} & coarse else Verdict.SAME)
    assert verdict(0.0, MIN_COMPARED_TOKENS - 1) is Verdict.UNKNOWN
    assert verdict(10 * tolerance, 1) is Verdict.DIFFERENT
    assert Agreement().verdict(theirs, ours) is Verdict.UNKNOWN


def test_number_formats() -> None:
    assert number_format("float64", "none") is NumberFormat.FLOAT32
    assert number_format("bfloat16", "none") is NumberFormat.BFLOAT16
    assert number_format("bfloat16", "int8") is NumberFormat.INT8
    assert number_format("float32", "nf4") is NumberFormat.INT4
    assert number_format("float16", "gptq") is NumberFormat.INT4
