"""Pass times from a report of `gradellm bench --json`: differences of its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.capacity.conftest import DOCS
from gradellm_bench.capacity.bench_import import from_bench
from gradellm_bench.capacity.costs import Costs


def test_the_recorded_report_gives_a_cost_model() -> None:
    measured = from_bench(DOCS / "bench-gpu.json")
    assert (measured.processor, measured.kv_bytes_per_token, measured.context_tokens) == ("cuda", 131_072, 8192)
    costs = Costs.fit(measured)
    assert costs.step(1, 128, explained=False) == pytest.approx(5.67e-3, rel=0.02)
    assert costs.step(32, 32 * 2048, explained=False) == pytest.approx(9.84e-3, rel=0.02)
    total = costs.step(32, 32 * 2048, explained=True) + costs.scores(32, 32 * 2048)
    assert total == pytest.approx(32 / 1580.4, rel=0.05)


def report(**changes: Any) -> dict[str, Any]:
    """A report with one latency and three throughputs."""

    def throughput(backend: str, speed: float) -> dict[str, Any]:
        return {"backend": backend, "prompt_tokens": 100, "streams": 2, "tokens_per_second": speed, "gap": 10.0}

    return {
        "machine": {"model": "random 125m, 124.7M parameters", "dtype": "float32", "device": "x86_64 CPU"},
        "bandwidth": 5e10,
        "latencies": [
            {"backend": backend, "prompt_tokens": 65, "first_token": [80.0, 99.0, 90.0], "per_token": [10.0, 9.0, 11.0]}
            for backend in ("plain", "generate")
        ],
        "throughputs": [
            throughput("plain", 200.0), throughput("per_token", 80.0), throughput("chunked(16)", 160.0),
            throughput("generate", 100.0),
        ],
        **changes,
    }  # fmt: skip


def test_passes_are_differences_of_the_reports_figures(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(report()))
    measured = from_bench(tmp_path / "a.json")
    found: dict[str, Any] = {
        each.kind: (each.streams, each.tokens, each.context, each.median) for each in measured.passes
    }
    assert len(measured.passes) == 5
    assert found["step"] == found["explained_step"] == (2, 1, 100, 0.010)
    assert found["scores"] == (2, 1, 100, pytest.approx(2 / 80 - 0.010))
    assert found["replay"] == (2, 16, 100, pytest.approx(16 * (2 / 160 - 0.010)))
    assert found["read"] == (1, 64, 0, pytest.approx(0.090 - 0.010))
    assert measured.processor == "cpu"
    assert measured.weight_bytes == pytest.approx(4 * 124.7e6)
    assert measured.kv_bytes_per_token == 2 * 12 * 4 * 64 * 4  # layers x groups x width x bytes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"machine": {"model": "my-model, 1.0M parameters", "dtype": "float32"}}, "its model is my-model, and known"),
        ({"throughputs": [{"way": "plain"}]}, "is not what `gradellm bench --json FILE` writes"),
        ({"latencies": None}, "is not what `gradellm bench --json FILE` writes"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(report(**changes)))
    with pytest.raises(ValueError, match=message):
        from_bench(tmp_path / "a.json")
