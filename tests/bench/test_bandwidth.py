"""Memory bandwidth: bytes of a transfer over the median of its times."""

from __future__ import annotations

import pytest
import torch

from gradellm_bench import bandwidth
from gradellm_bench.bandwidth import read_bandwidth


def test_bandwidth_is_that_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "_BYTES", 2**24)
    assert 1e8 < read_bandwidth(torch.device("cpu")) < 1e13


def test_bandwidth_is_the_median_over_the_rounds_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([100.0, 4.0, 1.0, 2.0, 8.0, 16.0, 32.0, 0.5])
    monkeypatch.setattr(bandwidth, "_BYTES", 2**20)
    monkeypatch.setattr(bandwidth, "Stopwatch", lambda: lambda: next(seconds))
    assert read_bandwidth(torch.device("cpu")) == 2**20 / 4.0
