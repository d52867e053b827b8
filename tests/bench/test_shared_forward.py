"""The saving by a shared forward pass: the median of the rounds' ratios."""

from __future__ import annotations

import sys

import pytest
import torch

from bench.conftest import FakeTime
from gradellm_bench import shared_forward


def test_the_ratio_is_the_median_of_the_rounds(
    shape: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shared_forward, "PROMPT_TOKENS", 12)
    monkeypatch.setattr(shared_forward, "NEW_TOKENS", 4)
    monkeypatch.setattr(shared_forward, "time", FakeTime([1.0, 2.0, 1.0, 4.0, 2.0, 10.0]))
    arguments = ["--shape", shape, "--rounds", "3", "--threads", str(torch.get_num_threads())]
    monkeypatch.setattr(sys, "argv", ["shared_forward", *arguments])
    shared_forward.main()
    *rounds, result = capsys.readouterr().out.splitlines()
    assert rounds[1] == "shared 1.0 s, separate 4.0 s"
    assert len(rounds) == 3
    assert result == "saliency of 4 tokens after 12: 0.25 of separate passes (median)"  # .5, .25 and .2
