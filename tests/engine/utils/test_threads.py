"""How many threads the arithmetic may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from gradellm_engine.utils import threads


@pytest.mark.parametrize(
    ("content", "expected"),
    [("max 100000", 8), ("400000 100000", 4), ("150000 100000", 2), ("1000 100000", 1), ("6400000 100000", 8), ("", 8)],
)
def test_a_control_groups_quota_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    (tmp_path / "cpu.max").write_text(content)
    assert threads.available_cpus(tmp_path / "cpu.max") == expected
    assert threads.available_cpus(tmp_path / "nowhere") == 8


def test_threads_are_as_set_or_as_many_as_the_quota_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        threads.use_threads(3)
        assert torch.get_num_threads() == 3
        monkeypatch.setattr(threads, "available_cpus", lambda: 2)
        threads.use_threads(None)
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(threads, "available_cpus", lambda: 64)
        threads.use_threads(None)  # torch's own choice, or what the caller set, is not raised
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
