"""Errors in flags, paths, ports and files are found before torch is imported."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gradellm_engine import ModelLoadError
from gradellm_server import preflight
from gradellm_server.preflight import ModelOptions
from gradellm_server.settings import ListenError, ServerSettings


@pytest.fixture
def used_port() -> Iterator[int]:
    """A port in use."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield int(listening.getsockname()[1])


def test_errors_are_found_without_torch(tmp_path: Path, used_port: int) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.toml").write_text("[somebody]\nsha256 = 3")
    (tmp_path / "bad.pem").write_text("no certificate")
    bad = str(tmp_path / "bad.pem")
    cases = [
        (["--model", str(tmp_path / "nowhere")], "there is no folder"),
        (["--model", str(tmp_path / "empty")], "is empty"),
        (["--model", str(tmp_path / "bad.toml")], "is a file"),
        (["--tokens", str(tmp_path / "none.toml")], "cannot be read"),
        (["--tokens", str(tmp_path / "bad.toml")], "sha256 must be"),
        (["--tls-cert", bad, "--tls-key", bad], "not a certificate"),
        (["--tls-cert", bad], "--tls-key"),
        (["--listen", f"127.0.0.1:{used_port}"], f"cannot listen on 127.0.0.1:{used_port}: address already in use"),
        (["--listen", f"unix:{tmp_path}/none/a.sock"], "there is no such folder"),
        (["--listen", "203.0.113.7:0", "--insecure"], "cannot listen on 203.0.113.7:0"),
        (["--health-port", str(used_port)], "for health checks: address already in use"),
        (["--metrics-listen", f"127.0.0.1:{used_port}"], "for metrics: address already in use"),
        (["--device", "cpu", "--device-map", "auto"], "not both"),
        (["--device-map", "auto", "--tensor-parallel"], "give no device map"),
        (["--quantize", "int8", "--tensor-parallel"], "does not shard weights in int8: give no quantize"),
        (["--device", "cpu", "--tensor-parallel"], "leave device at auto"),
        (["--max-running", "0"], "at least 1"),
        (["--stall-seconds", "0"], "stall_seconds"),
    ]
    program = (
        "import json, sys\n"
        "from gradellm_server.__main__ import main\n"
        "for arguments in json.load(sys.stdin):\n"
        "    try: status = main(['--listen', 'localhost:0', *arguments])\n"
        "    except SystemExit as ended: status = ended.code\n"
        "    loaded = [name for name in ('torch', 'transformers') if name in sys.modules]\n"
        "    print(json.dumps([status, loaded]), flush=True)\n"
        "    print('---', file=sys.stderr, flush=True)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps([arguments for arguments, _ in cases]),
        capture_output=True,
        text=True,
        check=True,
    )
    outputs = run.stderr.split("---\n")
    for (arguments, words), answer, errors in zip(cases, run.stdout.splitlines(), outputs, strict=False):
        assert json.loads(answer) == [2, []], arguments
        assert words in errors
    assert len(run.stdout.splitlines()) == len(cases)


def test_servable_models_pass(model_path: Callable[[str], Path], used_port: int, tmp_path: Path) -> None:
    settings = ServerSettings(
        listen="localhost:0",
        metrics_listen=f"127.0.0.1:{used_port}",
        metrics_required=False,
        health_listen="127.0.0.1:0",
    )
    preflight.check(settings, ModelOptions())
    preflight.check(settings, ModelOptions(model=str(model_path("llama")), context_tokens=256))
    preflight.check(ServerSettings(listen=f"unix:{tmp_path}/a.sock"), ModelOptions(model="ORGANISATION/NAME"))
    with pytest.raises(ModelLoadError, match="257 tokens was requested; the model takes 2 to 256"):
        preflight.check(settings, ModelOptions(model=str(model_path("gpt2")), context_tokens=257))


def test_a_port_with_lingering_connections_is_free() -> None:
    """As after a restart, with connections in TIME_WAIT."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            answered, _ = listening.accept()
            answered.close()
            client.recv(1)
    preflight.check(ServerSettings(listen=f"127.0.0.1:{port}"), ModelOptions())


def test_a_missing_library_for_quantised_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelLoadError, match=r"weights in nf4 need bitsandbytes: pip install 'gradellm\[quant\]'"):
        preflight.check(ServerSettings(listen="localhost:0"), ModelOptions(quantization="nf4"))


def test_an_unknown_host_name() -> None:
    with pytest.raises(ListenError, match=r"cannot listen on no\.such\.host\.invalid:0: "):
        preflight.check(ServerSettings(listen="no.such.host.invalid:0", insecure=True), ModelOptions())
