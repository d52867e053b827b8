"""The server as a process: start, errors, signals, and its end with its parent."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gradellm import Client
from gradellm_engine.demo_model import CHECKPOINT
from gradellm_server.__main__ import main

START_SECONDS = 90


def gradellm(*arguments: str, module: str = "gradellm") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},  # else an unreachable hub is retried
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "gradellm_server", "--listen", address, *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "serving" in line:
                break
        assert process.poll() is None, lines
        yield process, address
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "0.0.0.0:50051"], "--insecure"),
        (["--max-running", "0"], "--max-running: must be at least 1"),
        (["--kv-memory", "plenty"], "512MiB or 8GB"),
        (["--kv-memory", "1kB"], "a KV cache of 1,000 bytes is too small"),
        (["--kv-memory", "200000GiB"], "200,000.0 GiB, more than the model leaves free"),
        (["--dtype", "float7"], "float7"),
        (["--device", "abacus"], "abacus"),
        (["--threads", "0"], "must be at least 1"),
        (["--max-context-tokens", "100000"], "100000"),
    ],
)
def test_invalid_settings_end_with_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert status_of(["--listen", "127.0.0.1:0", *arguments]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.removeprefix("gradellm serve: ").startswith("error: ")
    assert words in last


def status_of(arguments: list[str]) -> int:
    """The exit status of the command, in this process."""
    try:
        return main(arguments)
    except SystemExit as ended:  # from argparse
        return int(ended.code or 0)


def test_a_missing_model_ends_the_process_with_one_line() -> None:
    ended = gradellm("serve", "--listen", "127.0.0.1:0", "--model", "no/such-model")
    assert ended.returncode == 2
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "no/such-model" in last
    assert "Traceback" not in ended.stderr


def test_a_used_port_is_refused_before_the_model_is_loaded() -> None:
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        address = f"127.0.0.1:{used.getsockname()[1]}"
        ended = gradellm("--listen", address, module="gradellm_server")
    assert ended.returncode == 2
    assert f"cannot listen on {address}" in ended.stderr
    assert "weights" not in ended.stderr


def test_a_model_that_is_not_supported_or_corrupt_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["--model", str(tmp_path), "--listen", "127.0.0.1:0"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    assert status_of(arguments) == 2
    assert "'mamba' is not supported" in capsys.readouterr().err
    for file in CHECKPOINT.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert status_of(arguments) == 2
    assert f"{weights} is corrupt or cut off" in capsys.readouterr().err


OURS = re.compile(r"gradellm: |\d{4}-\d\d-\d\d [\d:,]+ [A-Z]+ gradellm[\w.]*: ")


def test_standard_error_has_only_lines_of_the_server() -> None:
    """From start to end, with a call between; libraries write nothing."""
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "gradellm_server", "--listen", address, "--metrics-listen", "none"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "serving" in line:
            break
    with Client(address) as client:
        client.explain("One", max_new_tokens=1)
    process.terminate()
    lines += process.stderr.read().splitlines()
    assert process.wait(30) == 0
    process.stderr.close()
    assert [line for line in lines if not OURS.match(line)] == []
    assert len(lines) >= 6


def test_sigterm_lets_streams_finish_and_a_second_signal_does_not() -> None:
    with serving() as (process, address), Client(address, retry=None) as client:
        stream = client.generate("Once upon a time", max_new_tokens=40)
        assert next(stream).started is not None
        process.send_signal(signal.SIGTERM)
        assert list(stream)[-1].finished is not None
        assert process.wait(20) == 0
    with serving("--grace-seconds", "60") as (process, address), Client(address, retry=None) as client:
        stream = client.generate("Once upon a time", max_new_tokens=400)
        next(stream)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) in (0, 128 + signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_startup_ends_the_server_at_once(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "gradellm_server", "--listen", f"127.0.0.1:{free_port()}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "starting" in process.stderr.readline()
        process.send_signal(number)
        _, output = process.communicate(timeout=5)
    assert process.returncode == 128 + number
    assert output.strip() == "gradellm: stopped before it was ready"


PARENT = """
import time
from gradellm import Client
client = Client.local(model={model!r})
print(client._server._process.pid, client.explain("Once upon a time", max_new_tokens=2).text, flush=True)
time.sleep(600)
"""


def alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    # A zombie, which its new parent has not reaped yet, has ended.
    return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_local_server_ends_with_its_parent_even_after_kill_9(model_path: Callable[[str], Path]) -> None:
    script = PARENT.format(model=str(model_path("llama")))
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline().split()[0])
    assert alive(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    limit = time.monotonic() + 10
    while alive(child):
        assert time.monotonic() < limit, "the server outlived its parent"
        time.sleep(0.05)


def test_explain_on_the_command_line_starts_a_server_of_its_own() -> None:
    ended = gradellm("explain", "Once upon a time", "--max-new-tokens", "3", "--format", "json", "--seed", "1")
    assert ended.returncode == 0, ended.stderr
    explanation = json.loads(ended.stdout)
    assert "Traceback" not in ended.stderr
    assert "starting a server" in ended.stderr  # the user sees progress
    assert "Once upon a time" in json.dumps(explanation)


def test_the_demo_colours_the_words() -> None:
    ended = gradellm("demo", "--color", "always")
    assert ended.returncode == 0, ended.stderr
    assert "48;2;" in ended.stdout  # a background colour
    assert "Positive" in ended.stdout or "Negative" in ended.stdout


def test_the_health_port_reports_live_before_ready() -> None:
    """As Kubernetes' probes see it: live while the model loads, ready once it serves, not ready while it drains."""
    port = free_port()

    def status(stub: Any, service: str) -> str:
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        except grpc.RpcError as error:
            return str(error.code().name)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    seen: list[tuple[str, str]] = []
    command = [sys.executable, "-m", "gradellm_server", "--listen", f"127.0.0.1:{free_port()}"]
    with (
        subprocess.Popen([*command, "--health-port", str(port)], stderr=subprocess.PIPE, text=True) as process,
        grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.max_reconnect_backoff_ms", 100)]) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and (not seen or seen[-1][1] != "SERVING"):
            now = status(stub, "live"), status(stub, "ready")
            if not seen or seen[-1] != now:
                seen.append(now)
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        process.stderr.read()
        assert process.wait(20) == 0
    answered = [pair for pair in seen if "UNAVAILABLE" not in pair]
    assert answered == [("SERVING", "NOT_SERVING"), ("SERVING", "SERVING")]
