"""The benchmark of structured output runs, and prints a ratio for each number of streams."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from gradellm_bench.structured.__main__ import STREAMS, main


def test_it_prints_a_ratio_for_each_number_of_streams(
    model_path: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--model", str(model_path("demo")), "--new-tokens", "6", "--rounds", "2"])
    printed = capsys.readouterr().out
    assert re.search(r"first use of a schema: [0-9.]+ ms", printed)
    assert len(re.findall(r"[0-9.]+ of the unconstrained tokens a second, [0-9.]+ by CPU time", printed)) == 2 * len(
        STREAMS
    )
