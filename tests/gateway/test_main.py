"""The command line of the gateway."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradellm_bench.network.servers import free_port
from gradellm_gateway.__main__ import main
from server.conftest import RunningServer
from support.http.calls import send
from support.upstream.fake_vllm import KEY, MODEL, FakeVllm


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "8080"], "is not HOST:PORT"),
        (["--listen", "0.0.0.0:8080"], "--insecure"),
        (["--tls-cert", "x"], "need each other"),
        (
            ["--tls-cert", "absent.pem", "--tls-key", "absent.key"],
            "--tls-cert absent.pem and --tls-key absent.key cannot",
        ),
        (["--max-connections", "0"], "must be at least 1"),
        (["--served-model-name", "a", "/models/a"], "no path"),
        (["--served-model-name", ""], "no path"),
        (["--served-model-name", "a", "--upstream", "http://localhost:8000/v1"], "the upstream's own"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


UPSTREAM = ["--upstream", "http://localhost:8000/v1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--upstream", "localhost:8000"], "upstream: must be http://HOST:PORT/v1"),
        ([*UPSTREAM, "--upstream-dtype", "int3"], "invalid choice: 'int3'"),
        ([*UPSTREAM, "--explain-wait", "0"], "must be a number of seconds above 0"),
        ([*UPSTREAM, "--upstream-timeout", "soon"], "must be a number of seconds above 0"),
        ([*UPSTREAM, "--target-token-file", "absent"], "--target-token-file absent cannot be read"),
        ([*UPSTREAM, "--upstream-token-file", "EMPTY"], "must have one token"),
        (["--target-token-file", "x"], "--target-token-file needs --upstream or --api-key"),
        ([*UPSTREAM, "--api-key", "x"], "--api-key and --upstream exclude each other"),
        (["--api-key-file", "absent"], "--api-key-file absent cannot be read"),
        (["--api-key-file", "EMPTY"], "has no key"),
        (["--api-key", "a b"], "must be printable ASCII"),
        (["--otlp-endpoint", "localhost:4317"], "--otlp-endpoint: localhost:4317 is not http://HOST:PORT"),
    ],
)
def test_settings_of_an_upstream_that_cannot_be_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "empty").write_text("\n")
    arguments = [str(tmp_path / "empty") if argument == "EMPTY" else argument for argument in arguments]
    try:
        status: object = main(arguments)
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert words in capsys.readouterr().err


def test_an_upstream_with_another_model_ends_the_gateway(server: RunningServer, tmp_path: Path) -> None:
    vllm = FakeVllm(server.address)
    vllm.shift, vllm.needs_key = 1, True
    (tmp_path / "key").write_text(f"{KEY}\n")
    (tmp_path / "token").write_text("unused\n")
    command = [sys.executable, "-m", "gradellm_gateway", "--listen", "127.0.0.1:0", "--target", server.address]
    command += ["--upstream", vllm.url, "--upstream-token-file", str(tmp_path / "key")]
    command += ["--target-token-file", str(tmp_path / "token"), "--log-level", "debug"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    vllm.close()
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith(f"error: the upstream's model {MODEL} is not the explainer's")
    assert KEY not in ended.stderr


def test_spans_are_sent_before_the_gateway_ends() -> None:
    from support.otlp_collector import collecting

    address = f"127.0.0.1:{free_port()}"
    with collecting() as collector:
        command = [sys.executable, "-m", "gradellm_gateway", "--listen", address, "--target", "127.0.0.1:1"]
        process = subprocess.Popen([*command, "--otlp-endpoint", collector.endpoint])
        try:
            until = time.monotonic() + 30
            while not is_answered(f"http://{address}"):
                assert time.monotonic() < until
                time.sleep(0.05)
        finally:
            process.terminate()
            assert process.wait(20) == -signal.SIGTERM  # uvicorn's way to end
    assert [span.name for span in collector.spans] == ["GET /v1/models"]


def is_answered(url: str) -> bool:
    try:
        return send(url, "GET", "/v1/models")[0] == 503  # of a server that is not there
    except OSError:
        return False
