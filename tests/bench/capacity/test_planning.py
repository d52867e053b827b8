"""Plans keep what they level, limits are plain arithmetic, and docs/capacity.md is what the program writes."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from bench.capacity.test_replica_simulator import COSTS
from gradellm_bench.capacity import document
from gradellm_bench.capacity.__main__ import main
from gradellm_bench.capacity.limits import MAX_DNS_RECORDS, Wire, limits
from gradellm_bench.capacity.planning import HEADROOM, Plan, ServiceLevel, highest_rate, plan, simulate
from gradellm_bench.capacity.replica_simulator import ReplicaSettings
from gradellm_bench.capacity.report import validation_table
from gradellm_bench.capacity.request_metrics import Summary
from gradellm_bench.capacity.traffic import Traffic

DOCS = Path(__file__).parents[3] / "docs"
SERVER = ReplicaSettings(max_running=8, kv_tokens=8000)
TRAFFIC = Traffic(1.0, prompt_tokens=50, answer_tokens=20, max_new_tokens=60, context_tokens=512)
WIRE = Wire(100e-6, 100e-6, 0.2e-6, 500e-6, 33, 8, 500)


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


def test_limits_are_arithmetic() -> None:
    run = Summary(100, 0.0, (0.1, 0.2, 0.3), (0.01, 0.02, 0.03), (0.0, 0.0, 0.0), 1000.0, 500.0, 0.5, 10.0)
    fleet = Plan(50.0, 10.0, "first token after 3 s", 10, 10, run, None)
    found = limits(fleet, TRAFFIC, COSTS, SERVER, WIRE, clients=4, nic_gbit=1.0)
    used = {limit.what: limit.used for limit in found}
    assert used["time of the GPUs"] == pytest.approx(0.5)
    assert used["memory for keys and values"] == pytest.approx(10 * 110 / 8000)
    event_loop = 1000 * 100e-6 + 500 * (100e-6 + 50 * 0.2e-6)
    assert used["a server's interpreter (gRPC's event loop)"] == pytest.approx(event_loop / 0.7)
    assert used["a server's network"] == pytest.approx(8 * (1000 * 33 + 500 * (8 + 200)) / 1e9)
    assert used["one answer of DNS, by UDP"] == pytest.approx((72 + 160) / 1232)
    assert used["one Prometheus"] == pytest.approx(10 * 500 / 5e6)
    assert [limit.used for limit in found] == sorted((limit.used for limit in found), reverse=True)
    assert MAX_DNS_RECORDS == 4091
    many = {
        limit.what: limit.used
        for limit in limits(replace(fleet, replicas=4092), TRAFFIC, COSTS, SERVER, WIRE, clients=4)
    }
    assert many["one answer of DNS, at all"] > 1


def test_the_command_prints_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    passes, wire = str(DOCS / "capacity-h100.json"), str(DOCS / "capacity-wire.json")
    command = ["plan", "--passes", passes, "--load", "2", "--prompt-tokens", "64", "--answer-tokens", "8"]
    assert main([*command, "--max-new-tokens", "8", "--wire", wire, "--gpu-hour", "3"]) == 0
    output = capsys.readouterr().out
    assert "NVIDIA H100" in output
    assert "| 2 |" in output
    assert "one answer of DNS" in output


def test_invalid_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text("{}")
    assert main(["plan", "--passes", str(tmp_path / "a.json"), "--load", "2"]) == 2
    assert "a.json is not what" in capsys.readouterr().err


def assert_close(found: Any, expected: Any) -> None:
    """The same document; numbers as near as other processors' rounding lets them be."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_close(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for actual, value in zip(found, expected, strict=True):
            assert_close(actual, value)
    else:
        assert found == (pytest.approx(expected, rel=1e-9) if isinstance(expected, float) else expected)


def test_the_committed_page_is_current() -> None:
    """Recomputes its quick parts, trials and one plan; the rest is compared with the JSON file."""
    page = (DOCS / "capacity.md").read_text()
    written = json.loads((DOCS / "capacity.json").read_text())
    assert document.put(page, "trials", validation_table(document.validation_runs(DOCS))) == page
    assert written["traffic"] == asdict(document.TRAFFIC)
    costs = document.machines_of(DOCS)["H100"]
    before = written["plans"]["H100"][0]
    now = plan(
        costs,
        document.SERVERS["H100"],
        replace(document.TRAFFIC, rate=document.LOADS[0]),
        ServiceLevel(),
        gpu_hour=document.PRICE,
        known=(before["each"], before["breaks"]),
    )
    assert_close(json.loads(json.dumps(asdict(now))), before)
    for marks in re.findall(r"<!-- begin: (.+?) -->", page):
        assert page.count(f"<!-- begin: {marks} -->") == page.count(f"<!-- end: {marks} -->") == 1
