"""How many generators an explainer follows, on a small model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gradellm_bench.following.generators import Rate, follow_rates, generators_table
from gradellm_engine import Engine


def test_rates(model_path: Callable[[str], Path]) -> None:
    engine = Engine.load(str(model_path("demo")), max_running=2, max_followed=2)
    found = follow_rates(engine, "Once upon a time", streams=[1, 2], num_tokens=9, chunk_size=4, rounds=1)
    assert [each.streams for each in found] == [1, 2]
    for each in found:
        assert each.followed / each.decoded == each.generators > 0
    assert not engine.scheduler.running


def test_table() -> None:
    assert generators_table([Rate(8, 100.4, 250.6, 2.5)]).splitlines()[-1] == "| 8 | 100 | 251 | 2.50 |"
