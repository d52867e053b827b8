"""Agreement of log-probabilities: its sums, the noise that it estimates, and verdicts."""

from __future__ import annotations

import math

import pytest
import torch

from gradellm_engine.core.following.agreement import (
    FEW_TOKENS_MARGIN,
    MIN_COMPARED_TOKENS,
    MIN_VARIANCE,
    TOLERANCES,
    Agreement,
    NumberFormat,
    Verdict,
    number_format,
)


def test_one_token() -> None:
    own = math.log(0.25)
    agreement = Agreement.of(-1.5, own, 0.25**2 + 0.75**2)
    difference = abs(-1.5 - own)
    assert (agreement.num_tokens, agreement.largest, agreement.total) == (1, difference, difference)
    variance = 0.75**2 + 0.75**2  # of the token, and of the only other one
    assert agreement.scaled == pytest.approx(difference / math.sqrt(variance + MIN_VARIANCE))
    assert Agreement.of(math.nan, -1.0, 0.5) == Agreement()
    assert Agreement.of(0.0, 1e-7, 1.0).scaled == pytest.approx(1e-7 / math.sqrt(MIN_VARIANCE))  # rounding: p above 1


def test_sums() -> None:
    total = Agreement.of(-1.0, -1.5, 0.3) + Agreement.of(-2.0, -1.0, 0.3) + Agreement()
    assert (total.num_tokens, total.largest, total.mean) == (2, 1.0, 0.75)
    assert total.noise == pytest.approx(math.sqrt(math.pi / 2) * total.scaled / 2)
    assert (Agreement().mean, Agreement().noise) == (0.0, 0.0)
    resumed = Agreement.resumed(total.num_tokens, total.largest, total.mean, total.noise)
    assert resumed.scaled == pytest.approx(total.scaled)
    assert resumed.total == pytest.approx(total.total)


@pytest.mark.parametrize("scale", [0.5, 2.0, 6.0], ids=["unsure", "between", "certain"])
@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_noise_is_that_of_the_logits(scale: float, noise: float) -> None:
    """Whatever the model's certainty, of which the differences of log-probabilities depend."""
    torch.manual_seed(3)
    total = Agreement()
    for _ in range(400):
        logits = scale * torch.randn(50, dtype=torch.float64)
        other = logits + noise * torch.randn(50, dtype=torch.float64)
        probs = logits.softmax(-1)
        token = int(torch.multinomial(probs, 1))
        own = float(logits.log_softmax(-1)[token])
        total += Agreement.of(float(other.log_softmax(-1)[token]), own, float(probs.square().sum()))
    assert total.noise == pytest.approx(noise, rel=0.2)


@pytest.mark.parametrize("theirs", NumberFormat)
@pytest.mark.parametrize("ours", NumberFormat)
def test_verdicts(theirs: NumberFormat, ours: NumberFormat) -> None:
    tolerance = max(TOLERANCES[theirs], TOLERANCES[ours])
    n = 32
    allowed = tolerance * (1 + FEW_TOKENS_MARGIN / math.sqrt(n))

    def of(noise: float, count: int = n) -> Verdict:
        return Agreement.resumed(count, 0.0, 0.0, noise).verdict(theirs, ours)

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
