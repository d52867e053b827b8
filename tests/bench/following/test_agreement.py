"""Weights rounded to a format, weights with noise, and the table; one prompt of a small model in each format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gradellm_bench.following.agreement import Judged, main, rounded, table, with_noise
from gradellm_engine import Agreement, NumberFormat, Verdict


@pytest.mark.parametrize(
    ("number_format", "largest_step"),
    [(NumberFormat.FP8, 1 / 8), (NumberFormat.INT8, 1 / 127), (NumberFormat.INT4, 1 / 7)],
)
@pytest.mark.parametrize("width", [256, 100])
def test_rounding(number_format: NumberFormat, largest_step: float, width: int) -> None:
    weight = torch.randn(8, width, generator=torch.Generator().manual_seed(1))
    error = (rounded(weight, number_format) - weight).abs()
    assert 0 < error.max() <= largest_step * weight.abs().max() * 0.51 + 1e-6
    assert rounded(torch.zeros(2, width) + 1e-9, NumberFormat.INT4).isfinite().all()


def test_formats_that_are_computed_with_are_not_rounded() -> None:
    weight = torch.randn(2, 3)
    for number_format in (NumberFormat.FLOAT32, NumberFormat.BFLOAT16, NumberFormat.FLOAT16):
        assert rounded(weight, number_format) is weight


def test_noise() -> None:
    weight = 3 * torch.randn(200, 100, generator=torch.Generator().manual_seed(1))
    noisy = with_noise(weight, 0.05, torch.Generator().manual_seed(2))
    assert float((noisy - weight).std()) == pytest.approx(0.15, rel=0.05)


def test_table() -> None:
    judged = [Judged(Agreement.resumed(32, 0.1, 0.05, noise), Verdict.SAME) for noise in (0.1, 0.3, 0.2)]
    judged.append(Judged(Agreement(), Verdict.DIFFERENT))
    last = table({"bfloat16": judged}).splitlines()[-1]
    assert last == "| bfloat16 | 4 | 0.2000 | 0.2000 | 0.3000 | 1 different, 3 same |"


def test_a_small_model(model_path: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    main(["--model", str(model_path("demo")), "--prompts", "1", "--dtypes", "float32", "--layer", "1"])
    clean, noisy = capsys.readouterr().out.splitlines()[-2:]
    assert clean.startswith("| float32 | 1 | 0.0000")
    assert clean.endswith("| 1 same |")
    assert noisy.endswith("| 1 different |")
