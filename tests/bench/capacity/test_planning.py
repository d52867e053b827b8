"""Plans meet their service level, with headroom and spare servers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.capacity.conftest import COSTS, SERVER, TRAFFIC
from gradellm_bench.capacity.planning import HEADROOM, ServiceLevel, highest_rate, plan, simulate


def test_the_highest_rate_keeps_the_level_and_little_more_does_not() -> None:
    level = ServiceLevel(first_token=0.5, gap=1.0)
    rate, breaks = highest_rate(COSTS, SERVER, TRAFFIC, level, requests=200)
    assert level.broken_by(simulate(COSTS, SERVER, replace(TRAFFIC, rate=rate), requests=200)) is None
    assert level.broken_by(simulate(COSTS, SERVER, replace(TRAFFIC, rate=1.3 * rate), requests=200)) is not None
    assert breaks
    assert rate < highest_rate(COSTS, SERVER, TRAFFIC, ServiceLevel(first_token=2.0, gap=1.0), requests=200)[0]


def test_an_unreachable_service_level_is_named() -> None:
    with pytest.raises(ValueError, match="not even one request at a time"):
        highest_rate(COSTS, SERVER, TRAFFIC, ServiceLevel(gap=0.001), requests=50)


def test_the_interpreter_bounds_a_server_too() -> None:
    level = ServiceLevel(first_token=0.5, gap=1.0)
    free, _ = highest_rate(COSTS, SERVER, TRAFFIC, level, requests=100)
    bound, breaks = highest_rate(
        COSTS, SERVER, TRAFFIC, level, requests=100, load_of=lambda run: run.tokens_per_second / 40
    )
    assert bound < free
    assert "interpreter" in breaks


def test_servers_are_counted_with_headroom_and_spares() -> None:
    found = plan(
        COSTS, SERVER, replace(TRAFFIC, rate=30.0), ServiceLevel(), spare=2, gpus=4, gpu_hour=3, known=(5.0, "x")
    )
    assert found.replicas == 7 + 2  # 30 / (HEADROOM * 5)
    assert found.gpus == 36
    assert found.a_month == pytest.approx(730 * 3 * 36)
    assert HEADROOM == 0.9
