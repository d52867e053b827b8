"""Agreement of log-probabilities: its sums, the noise that it estimates, and verdicts."""

from __future__ import annotations

import math

import pytest
import torch

from gradellm_engine.core.following.agreement import (
    FEW_TOKENS_MARGIN,
    MIN_COMPARED_TOKENS,
    MIN_DOUBT,
    TOLERANCES,
    Agreement,
    NumberFormat,
    Verdict,
    number_format,
)


def test_one_token() -> None:
    agreement = Agreement.of(-1.5, math.log(0.25))
    difference = abs(-1.5 - math.log(0.25))
    assert agreement == Agreement(1, difference, difference, difference**2, agreement.doubt)
    assert agreement.doubt == pytest.approx(0.75**2 + MIN_DOUBT**2)
    assert Agreement.of(math.nan, -1.0) == Agreement()
    assert Agreement.of(0.0, 1e-7).doubt == pytest.approx(MIN_DOUBT**2)  # rounding may put p above 1


def test_sums() -> None:
    total = Agreement.of(-1.0, -1.5) + Agreement.of(-2.0, -1.0) + Agreement()
    assert (total.num_tokens, total.largest, total.mean) == (2, 1.0, 0.75)
    assert total.noise == pytest.approx(math.sqrt(1.25 / total.doubt))
    assert (Agreement().mean, Agreement().noise) == (0.0, 0.0)


@pytest.mark.parametrize("scale", [0.5, 2.0, 6.0], ids=["unsure", "between", "certain"])
@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_noise_is_that_of_the_logits(scale: float, noise: float) -> None:
    """Whatever the model's certainty, of which the differences of log-probabilities depend."""
    torch.manual_seed(3)
    total = Agreement()
    for _ in range(400):
        logits = scale * torch.randn(50, dtype=torch.float64)
        other = logits + noise * torch.randn(50, dtype=torch.float64)
        token = int(torch.multinomial(logits.softmax(-1), 1))
        total += Agreement.of(float(other.log_softmax(-1)[token]), float(logits.log_softmax(-1)[token]))
    assert total.noise == pytest.approx(noise, rel=0.35)


@pytest.mark.parametrize("theirs", NumberFormat)
@pytest.mark.parametrize("ours", NumberFormat)
def test_verdicts(theirs: NumberFormat, ours: NumberFormat) -> None:
    tolerance = max(TOLERANCES[theirs], TOLERANCES[ours])
    n = 32
    allowed = tolerance * (1 + FEW_TOKENS_MARGIN / math.sqrt(n))

    def of(noise: float, count: int = n) -> Verdict:
        return Agreement(count, 0.0, 0.0, noise**2, 1.0).verdict(theirs, ours)

    assert of(1.01 * allowed) is Verdict.DIFFERENT
    coarse = {NumberFormat.FP8, NumberFormat.INT8, NumberFormat.INT4}
    assert of(0.99 * allowed) is (Verdict.COMPATIBLE if {theirs, ours} & coarse else Verdict.SAME)
    assert of(0.0, MIN_COMPARED_TOKENS - 1) is Verdict.UNKNOWN
    assert of(10 * tolerance, 1) is Verdict.DIFFERENT
    assert Agreement().verdict(theirs, ours) is Verdict.UNKNOWN


def test_number_formats() -> None:
    assert number_format("float64", "none") is NumberFormat.FLOAT32
    assert number_format("bfloat16", "none") is NumberFormat.BFLOAT16
    assert number_format("bfloat16", "int8") is NumberFormat.INT8
    assert number_format("float32", "nf4") is NumberFormat.INT4
    assert number_format("float16", "gptq") is NumberFormat.INT4
