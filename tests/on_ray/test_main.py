"""`python -m gradellm_ray`: flags, files and tables of `gradellm evaluate`, and the same numbers when actors die."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from client.evaluation.fake_evaluator import write_data
from gradellm.cli import main as cli
from gradellm_ray.__main__ import main
from trials.ray_actors import engine_processes

Out = pytest.CaptureFixture[str]

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'gradellm[ray]'"
)
START_SECONDS = 150.0
FEW = ("--methods", "grad_ellm,saliency,random", "--pis", "0.25,0.5,0.75", "--samples", "1")


def arguments_of(data: Path, out: Path, *more: str) -> list[str]:
    return ["--preset", "sst2", "--data", str(data), "--out", str(out), *FEW, *more]


def lines(out: Path) -> list[str]:
    """The results file's lines in the order of ids; its header is the first."""
    return sorted((out / "results.jsonl").read_text().splitlines(), key=lambda line: json.loads(line).get("id", ""))


def ids(out: Path) -> list[str]:
    return [json.loads(line)["id"] for line in lines(out)[1:]]


def test_without_ray_the_evaluation_runs_in_process(tmp_path: Path, capsys: Out) -> None:
    data = write_data(tmp_path / "d.jsonl", 5, e2="word " * 5000)
    data.write_text(data.read_text() + '{"text": ""}\n')
    out = tmp_path / "out"
    assert main(arguments_of(data, out, "--actors", "0", "--methods", "all", "--metrics", "pi_soft_ns")) == 0
    captured = capsys.readouterr()
    assert "gradellm demo model; SST2 n = 4" in captured.out
    assert "1 bad row, listed in" in captured.err
    assert f"1 example of 5 failed, the first: e2: {data}, line 3: input.messages: " in captured.err
    assert "Made by: `python -m gradellm_ray --preset sst2" in (out / "table1.md").read_text()

    before = (out / "results.jsonl").read_bytes()
    assert main(arguments_of(data, out, "--actors", "0", "--methods", "all", "--metrics", "pi_soft_ns")) == 0
    assert "4 of 5 examples are done; evaluating the rest" in capsys.readouterr().err
    assert (out / "results.jsonl").read_bytes().startswith(before)
    assert main(arguments_of(data, out, "--actors", "0", "--seed", "1")) == 65
    assert "belongs to a run with other settings" in capsys.readouterr().err


def test_gradellm_evaluate_resumes_its_results_file(tmp_path: Path, capsys: Out) -> None:
    data, out = write_data(tmp_path / "d.jsonl", 3), tmp_path / "out"
    assert main(arguments_of(data, out, "--actors", "0")) == 0
    assert cli(["evaluate", *arguments_of(data, out)]) == 0  # starts a local server, which evaluates nothing
    assert "3 of 3 examples are done" in capsys.readouterr().err
    assert cli(["evaluate", "--merge", str(out), "--out", str(tmp_path / "merged")]) == 0
    assert (tmp_path / "merged" / "results.jsonl").read_text().splitlines() == lines(out)


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--preset", "sst"], 2, "--preset: there is no preset 'sst'; did you mean sst2?"),
        (["--methods", "salience"], 2, "--methods: there is no method 'salience'; did you mean saliency?"),
        (["--samples", "0"], 2, "--samples: must be 1 or more"),
        (["--model", "nowhere/at/all"], 70, "nowhere/at/all"),
    ],
)
def test_invalid_flags_are_refused(flags: list[str], code: int, message: str, tmp_path: Path, capsys: Out) -> None:
    data = write_data(tmp_path / "d.jsonl", 2)
    assert main(arguments_of(data, tmp_path / "out", "--actors", "0", *flags)) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--actors", "-1"], ["--gpus-per-actor", "1.5"], ["--gpus-per-actor", "x"]])
def test_flags_that_cannot_be_read(flags: list[str], capsys: Out) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--preset", "sst2", *flags])
    assert "usage: python -m gradellm_ray" in capsys.readouterr().err


def test_a_missing_ray_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        main(["--preset", "sst2", "--actors", "2"])
    assert "pip install 'gradellm[ray]'; --actors 0 runs without it" in capsys.readouterr().err


# --- actors -----------------------------------------------------------------------------------------------------------


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "gradellm_ray", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until_lines(process: subprocess.Popen[str], out: Path, count: int) -> None:
    """Wait until the results file has so many; a cluster takes its time to start."""
    results, limit = out / "results.jsonl", time.monotonic() + START_SECONDS
    while not (results.exists() and results.read_bytes().count(b"\n") >= count):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.02)


@needs_ray
@pytest.mark.slow
def test_results_do_not_depend_on_actors_or_their_failures(tmp_path: Path) -> None:
    data = write_data(tmp_path / "d.jsonl", 24, e7="word " * 5000)
    assert main(arguments_of(data, tmp_path / "one", "--actors", "0")) == 0
    for out, is_killed in ((tmp_path / "two", False), (tmp_path / "killed", True)):
        process = start(*arguments_of(data, out, "--actors", "2"))
        try:
            if is_killed:
                until_lines(process, out, 4)
                both = engine_processes(process.pid)
                assert len(both) == 2
                both[0].send_signal(signal.SIGKILL)
            output, _ = process.communicate(timeout=200)
        finally:
            process.kill()
        assert process.returncode == 0, output
        assert len(ids(out)) == len(set(ids(out))) == 24
        assert lines(out) == lines(tmp_path / "one")
        tables = [json.loads((folder / "table1.json").read_text()) for folder in (out, tmp_path / "one")]
        assert tables[0] | {"command": ""} == tables[1] | {"command": ""}


@needs_ray
@pytest.mark.slow
def test_a_killed_job_is_resumed(tmp_path: Path) -> None:
    data = write_data(tmp_path / "d.jsonl", 12)
    assert main(arguments_of(data, tmp_path / "one", "--actors", "0")) == 0
    out = tmp_path / "out"
    process = start(*arguments_of(data, out, "--actors", "1"))
    try:
        until_lines(process, out, 4)
        children = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.communicate()
    psutil.wait_procs(children, timeout=30)  # Ray's own end with the one that has started them
    before = len(lines(out))
    assert 4 <= before < 13
    process = start(*arguments_of(data, out, "--actors", "1"))
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert lines(out) == lines(tmp_path / "one")


@needs_ray
@pytest.mark.slow
def test_no_model_and_no_cluster(tmp_path: Path) -> None:
    data = write_data(tmp_path / "d.jsonl", 2)
    for flags, code, message in (
        (["--model", "nowhere/at/all"], 70, "error: "),
        (["--address", "127.0.0.1:1"], 69, "error: there is no Ray cluster at 127.0.0.1:1"),
    ):
        process = start(*arguments_of(data, tmp_path / "out", *flags))
        output, _ = process.communicate(timeout=200)
        assert (process.returncode, message in output) == (code, True), output
        assert "Traceback" not in output


ENTER = "import sys, ray; ray.init(sys.argv[1]); print(ray.get(ray.remote(lambda: 'inside').remote()))"


@needs_ray
@pytest.mark.slow
def test_a_started_cluster_requires_its_token(tmp_path: Path) -> None:
    process = start(*arguments_of(write_data(tmp_path / "d.jsonl", 500), tmp_path / "out", "--actors", "1"))
    try:
        until_lines(process, tmp_path / "out", 2)
        (head,) = [item for item in psutil.Process(process.pid).children(recursive=True) if item.name() == "gcs_server"]
        ports = {item.laddr.port for item in head.net_connections() if item.status == psutil.CONN_LISTEN}
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        for port in ports:
            command = [sys.executable, "-c", ENTER, f"127.0.0.1:{port}"]
            stranger = subprocess.run(command, capture_output=True, text=True, env=env, timeout=100, check=False)
            assert stranger.returncode != 0
            assert "inside" not in stranger.stdout
            assert "InvalidAuthToken" in stranger.stderr
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
