"""The benchmark history: a run's line holds ratios, and a run is appended once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradellm_bench.history import main, summary

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["bench.json", "bench-gpu.json"])
def test_a_runs_line_has_ratios_to_plain(name: str) -> None:
    run = summary(json.loads((DOCS / name).read_text()), date="2026-01-01", commit="abc")
    assert run["token_cost"]
    for length, costs in run["token_cost"].items():
        assert costs["plain"] == 1
        assert 1 < costs["chunked(16)"] < costs["per_token"] < 3
        assert run["ms_per_token"][length]["plain"] > 0
    for speeds in run["throughput"].values():
        assert speeds["plain"] == 1
        assert speeds["per_token"] < 1


def test_a_run_is_appended_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = tmp_path / "history.jsonl"
    arguments = [str(DOCS / "bench.json"), "--history", str(history), "--date", "2026-01-01"]
    assert main([*arguments, "--commit", "one"]) == 0
    assert main([*arguments, "--commit", "one"]) == 0
    assert "already has this run" in capsys.readouterr().out
    assert main([*arguments, "--commit", "two"]) == 0
    assert [json.loads(line)["commit"] for line in history.read_text().splitlines()] == ["one", "two"]


def test_a_run_of_servers_has_their_throughput(tmp_path: Path) -> None:
    machine = {"model": "m", "dtype": "float32", "processor": "x86_64", "cores": 2}
    row = {"prompt": 128, "streams": 8, "server": "vllm", "tokens_per_second": 80.123}
    results = {"machine": machine, "rows": [row, row | {"server": "plain", "tokens_per_second": 70.0}], "loads": []}
    (tmp_path / "network.json").write_text(json.dumps(results))
    history = tmp_path / "history.jsonl"
    assert main([str(tmp_path / "network.json"), "--history", str(history), "--date", "2026-01-01"]) == 0
    run = json.loads(history.read_text())
    assert run["served"] == {"8 x 128": {"vllm": 80.12, "plain": 70.0}}
    assert run["device"] == "x86_64, 2 cores"


def test_a_wrong_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text("{}")
    assert main([str(tmp_path / "a.json"), "--history", str(tmp_path / "history.jsonl")]) == 2
    assert "is not a file that a benchmark wrote with --json" in capsys.readouterr().err
    assert not (tmp_path / "history.jsonl").exists()


def test_the_kept_history_is_of_this_form() -> None:
    runs = [json.loads(line) for line in (DOCS / "benchmark-history.jsonl").read_text().splitlines()]
    assert len(runs) >= 2
    keys = {"date", "commit", "model", "dtype", "device"}
    assert all(keys <= run.keys() for run in runs)
    assert all("served" in run or {"torch", "transformers", "token_cost", "throughput"} <= run.keys() for run in runs)
