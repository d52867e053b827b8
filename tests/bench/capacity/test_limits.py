"""Resources of a fleet: each limit is plain arithmetic on the plan and the costs of events."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.capacity.conftest import COSTS, SERVER, TRAFFIC, WIRE
from gradellm_bench.capacity.limits import MAX_DNS_RECORDS, Wire, limits
from gradellm_bench.capacity.planning import Plan
from gradellm_bench.capacity.request_metrics import Summary


def test_limits_are_arithmetic() -> None:
    run = Summary(100, 0.0, (0.1, 0.2, 0.3), (0.01, 0.02, 0.03), (0.0, 0.0, 0.0), 1000.0, 500.0, 0.5, 10.0)
    fleet = Plan(50.0, 10.0, "first token after 3 s", 10, 10, run, None)
    found = limits(fleet, TRAFFIC, COSTS, SERVER, WIRE, clients=4, nic_gbit=1.0)
    used = {limit.what: limit.used for limit in found}
    assert used["GPU time"] == pytest.approx(0.5)
    assert used["KV cache slots"] == pytest.approx(10 * 110 / 8000)
    event_loop = 1000 * 100e-6 + 500 * (100e-6 + 50 * 0.2e-6)
    assert used["a server's event loop (gRPC)"] == pytest.approx(event_loop / 0.7)
    assert used["a server's network"] == pytest.approx(8 * (1000 * 33 + 500 * (8 + 200)) / 1e9)
    assert used["a DNS response over UDP"] == pytest.approx((72 + 160) / 1232)
    assert used["time series of a Prometheus"] == pytest.approx(10 * 500 / 5e6)
    assert [limit.used for limit in found] == sorted((limit.used for limit in found), reverse=True)
    assert MAX_DNS_RECORDS == 4091
    many = {
        limit.what: limit.used
        for limit in limits(replace(fleet, replicas=4092), TRAFFIC, COSTS, SERVER, WIRE, clients=4)
    }
    assert many["a DNS response over TCP"] > 1


FIGURES = {
    "server_us_a_token": 110.0,
    "server_us_a_vector": 120.0,
    "server_us_a_thousand_scores": 180.0,
    "client_us_a_token_and_vector": 550.0,
    "bytes_of_a_token": 33,
    "bytes_of_a_vector_beside_scores": 8,
    "prometheus_series": 537,
}


def test_costs_on_the_wire_are_read_in_seconds(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(FIGURES))
    wire = Wire.read(tmp_path / "a.json")
    assert wire.row_seconds(2000) == pytest.approx(120e-6 + 360e-6)
    assert wire.interpreter(100, 50, 2000) == pytest.approx(100 * 110e-6 + 50 * 480e-6)
    assert wire.bytes_a_second(100, 50, 2000) == 100 * 33 + 50 * (8 + 4 * 2000)
    assert wire.client_seconds == pytest.approx(550e-6)
    assert wire.series == 537


@pytest.mark.parametrize("text", ["{", "[]", json.dumps(dict(list(FIGURES.items())[1:]))])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json is not what `python deploy/capacity/wire\.py"):
        Wire.read(tmp_path / "a.json")
