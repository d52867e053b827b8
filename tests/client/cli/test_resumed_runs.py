"""Runs over a data set that are killed or interrupted, and servers that are killed during a run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from client.evaluation.fake_evaluator import FEW, FakeEvaluator, evaluate_command, write_data
from gradellm import Client, Retry
from gradellm.evaluation.run_results import read_run
from gradellm_engine import Engine
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer
from support.client.processes import start, with_path

Out = pytest.CaptureFixture[str]


# --- stopped and resumed ----------------------------------------------------------------------------------------------


def in_folder(folder: Path, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start the command in a separate folder, so that every run has the same command line."""
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "gradellm", *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=with_path(),
    )  # fmt: skip


def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen")


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_killed_and_resumed_makes_the_same_tables(slow: FakeEvaluator, tmp_path: Path) -> None:
    data = write_data(tmp_path / "d.jsonl", 24, e4="long", e7="nothing")
    arguments = evaluate_command(data, Path("out"), slow, "--metrics", "pi_soft_ns,soft_ns,deletion")
    uninterrupted = in_folder(tmp_path / "whole", arguments)
    killed = in_folder(tmp_path / "killed", arguments)
    until(lambda: lines(tmp_path / "killed/out/results.jsonl") >= 6)
    killed.kill()
    killed.communicate()
    before = lines(tmp_path / "killed/out/results.jsonl")
    assert 6 <= before < 25
    resumed = in_folder(tmp_path / "killed", arguments)
    assert resumed.communicate(timeout=60)[0] == uninterrupted.communicate(timeout=60)[0]
    assert (resumed.returncode, uninterrupted.returncode) == (0, 0)
    for name in ("table1", "table2", "table4-models-fake"):
        for kind in ("md", "csv", "json"):
            contents = [(tmp_path / folder / "out" / f"{name}.{kind}").read_bytes() for folder in ("whole", "killed")]
            assert contents[0] == contents[1]
    ids = [json.loads(line)["id"] for line in (tmp_path / "killed/out/results.jsonl").read_text().splitlines()[1:]]
    assert len([example_id for example_id in ids if example_id != "e4"]) == 23


def test_an_interrupted_run_prints_the_command_that_resumes_it(slow: FakeEvaluator, tmp_path: Path) -> None:
    data = write_data(tmp_path / "d.jsonl", 30)
    out = tmp_path / "out"
    process = start(*evaluate_command(data, out, slow))
    until(lambda: lines(out / "results.jsonl") >= 4)
    process.send_signal(signal.SIGINT)
    stdout, err = process.communicate(timeout=20)
    assert (process.returncode, stdout) == (130, b"")
    done = len(read_run(str(out)).records)
    match = re.search(
        r"(\d+)/30.*\ninterrupted: (\d+) of 30 examples are done and kept in \S+; (\d) were in progress and are "
        r"evaluated again, because only complete examples are kept; this command resumes the run:\n  (.*)\n",
        err.decode(),
    )
    assert match is not None
    assert int(match[1]) == int(match[2]) == done
    assert 1 < int(match[3]) <= 2  # --concurrency
    assert match[4].startswith("gradellm evaluate --preset sst2 --data ")
    assert b"Traceback" not in err


# --- real servers -----------------------------------------------------------------------------------------------------


def test_a_run_survives_a_killed_server(tmp_path: Path) -> None:
    """Two servers of the demo model; one dies in the middle, the other brings all to an end."""
    socket = tmp_path / "killed.sock"
    killed = subprocess.Popen(
        [sys.executable, "-m", "gradellm_server", "--exit-with-stdin", "--listen", f"unix:{socket}"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    data, out = write_data(tmp_path / "d.jsonl", 16), tmp_path / "out"
    other = RunningServer(Engine.load(), ServerSettings(listen="127.0.0.1:0"))
    try:
        until(socket.exists)
        with Client(f"unix:{socket}", retry=Retry(starting_seconds=60)) as client:
            client.server_info()  # the socket exists before the server answers
        command = ["evaluate", "--preset", "sst2", "--data", str(data), "--out", str(out), *FEW]
        run = start(*command, "--target", f"unix:{socket},{other.address}")
        until(lambda: lines(out / "results.jsonl") >= 5)
        killed.kill()
        stdout, err = run.communicate(timeout=100)
    finally:
        killed.kill()
        killed.wait()
        other.close()
    assert run.returncode == 0, err.decode()
    assert b"SST2 n = 16;" in stdout
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()[1:]]
    assert sorted(line["id"] for line in results) == sorted(f"e{i}" for i in range(16))
    assert f"unix:{socket} is taken out for 1 s: " in err.decode()
