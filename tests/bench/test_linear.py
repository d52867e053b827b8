"""Bandwidth of GEMM kernels: bytes of weights over the median of the times, with each kernel in turn."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from bench.conftest import FakeTime
from gradellm_bench import linear
from gradellm_engine.layers.gemm import GemmWeight, Kernel


def test_figures_are_gigabytes_of_weights_per_second(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    used: list[Kernel] = []
    product = GemmWeight.product

    def recorded(weight: GemmWeight, x: Tensor) -> Tensor:
        used.append(weight.kernel(x))
        return product(weight, x)

    monkeypatch.setattr(GemmWeight, "product", recorded)
    monkeypatch.setattr(linear, "SHAPES", ((16, 32),))
    monkeypatch.setattr(linear, "ROWS", (1,))
    monkeypatch.setattr(linear, "BYTES", 3 * 4 * 16 * 32)
    monkeypatch.setattr(linear, "read_bandwidth", lambda device: 12.34e9)
    durations = [9e-6, 1e-6, 3e-6, 8e-6, 2e-6]  # the median is 3 us
    monkeypatch.setattr(linear, "time", FakeTime(durations * 2 * len(Kernel)))
    monkeypatch.setattr(sys, "argv", ["linear", "--threads", str(torch.get_num_threads())])
    linear.main()
    first, header, _, row = capsys.readouterr().out.splitlines()
    assert first == "a sum reads 12.3 GB/s"
    assert header.count("forward") == header.count("backward") == len(Kernel)
    size, rows, *figures = [cell.strip() for cell in row.strip("|").split("|")]
    assert (size, rows) == ("16 x 32", "1")
    assert figures == [f"{3 * 4 * 16 * 32 / 3e-6 / 1e9:.1f}"] * 2 * len(Kernel)
    assert used == [kernel for kernel in Kernel for _ in range(3 * linear.ROUNDS)]


def test_a_step_is_timed_by_each_layout() -> None:
    table = linear.step_table({(64, 32): 2, (96, 32): 1}, 1e9, (1, 5)).splitlines()
    assert table[0].startswith("| rows | floor | ")
    assert " torch | torch, bfloat16 | torch, int8 |" in table[0]
    assert [line.split("|")[1].strip() for line in table[2:]] == ["1", "5"]
    assert {line.count("|") for line in table} == {table[0].count("|")}
