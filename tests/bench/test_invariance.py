"""What batch-invariant results cost, measured on the demo model."""

from __future__ import annotations

import sys

import pytest

from gradellm_bench.invariance import main


def test_a_ratio_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["invariance", "--demo", "--rounds", "1", "--only", "one stream, explained"]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    output = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in output] == ["one stream, explained", "one stream, explained in chunks"]
    assert all(" times" in line for line in output)
