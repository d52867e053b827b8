"""Local servers: start, calls, stop, and errors of a failed start."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gradellm import AsyncClient, Client, LocalServerError
from gradellm.local.server import LocalServer

pytestmark = pytest.mark.usefixtures("server_module")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of sockets, to check that none is left."""
    directory = tmp_path / "t"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


def process(client: Client) -> subprocess.Popen[bytes]:
    assert client._server is not None
    return client._server._process


def test_the_local_server_starts_answers_and_ends(temporary: Path) -> None:
    with Client.local(model="m", dtype="bfloat16", device="cuda:1") as client:
        model = client.server_info().model
        assert (model.name, model.dtype, model.device) == ("m", "bfloat16", "cuda:1")
        assert client.target.startswith("unix:")
        assert len(client.target) < 108
        assert process(client).poll() is None
    assert process(client).returncode == 0
    assert list(temporary.iterdir()) == []
    client.close()  # once more does no harm


def test_the_local_server_starts_for_asyncio(temporary: Path) -> None:
    async def use() -> str:
        async with await AsyncClient.local(server_args=["--num-late-answers", "2"]) as client:
            return (await client.server_info()).model.name

    assert asyncio.run(use()) == "demo"
    assert list(temporary.iterdir()) == []


def test_a_slow_start_is_waited_for() -> None:
    with Client.local(server_args=["--num-late-answers", "3"]) as client:
        assert client.server_info().model.name == "demo"


def test_a_failing_start_has_the_servers_own_words(temporary: Path) -> None:
    with pytest.raises(
        LocalServerError, match=r"(?s)exited with code 1 before it was ready.*error: there is no model absent"
    ) as caught:
        Client.local(model="absent")
    assert (caught.value.exit_code, caught.value.stderr) == (1, "loading absent\nerror: there is no model absent")
    assert list(temporary.iterdir()) == []
    with pytest.raises(LocalServerError, match="killed by signal 9"):
        Client.local(model="too large")
    with pytest.raises(LocalServerError, match="unrecognized arguments: --colour"):
        asyncio.run(AsyncClient.local(server_args=["--colour", "red"]))


def test_a_hanging_start_is_given_up(temporary: Path) -> None:
    began = time.monotonic()
    with pytest.raises(LocalServerError, match=r"not ready within 0.5 s; .*startup_timeout_seconds") as caught:
        Client.local(model="hanging", startup_timeout_seconds=0.5)
    assert caught.value.exit_code is None
    assert time.monotonic() - began < 10
    assert list(temporary.iterdir()) == []


def test_a_child_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradellm.local.server._STOP_SECONDS", 0.3)
    client = Client.local(model="stubborn")
    client.close()
    assert process(client).returncode == -9


def test_the_child_ends_with_its_parent(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(temporary))  # its socket remains, because its parent was killed
    program = (
        "import gradellm.local.server, gradellm.local.processes, os; gradellm.local.processes._PACKAGES = ()\n"
        "from gradellm import Client; c = Client.local()\n"
        "print(c._server._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    parent = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert parent.returncode == -9, parent.stderr
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and _lives(int(parent.stdout)):
        time.sleep(0.05)
    assert not _lives(int(parent.stdout))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def test_a_long_or_odd_directory_is_not_taken(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x" * 120, "with space", "50%"):
        odd = temporary / name
        odd.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(odd))
        with Client.local() as client:
            assert client.target.startswith("unix:/tmp/gradellm-")
            assert client.server_info().model.name == "demo"


def test_the_log_can_be_shown(capfd: pytest.CaptureFixture[str]) -> None:
    Client.local(inherit_stderr=True).close()
    assert "loading demo" in capfd.readouterr().err


def test_a_missing_server_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradellm.local.processes._PACKAGES", ("json", "no_such_package"))
    with pytest.raises(LocalServerError, match=r"needs no_such_package, .*pip install 'gradellm\[server\]'"):
        Client.local()


def test_unknown_keywords_are_refused() -> None:
    keywords: Any = {"modle": "m"}
    with pytest.raises(TypeError, match="no keyword modle; it has model, dtype"):
        Client.local(**keywords)


FORKED = """
import gradellm.local.processes, gradellm.local.server, multiprocessing, os, socket, sys
gradellm.local.processes._PACKAGES = ()
from gradellm import Client
def child(how):
    if how == "close":
        client.close()
    if how == "collect":
        globals().pop("client")
def forked(how):
    pid = os.fork()
    if pid:
        assert os.waitpid(pid, 0)[1] == 0
    elif how == "with":
        with client:
            sys.exit(0)
    else:
        child(how)
        sys.exit(0)
client = Client.local()
if sys.argv[1] == "multiprocessing":
    process = multiprocessing.get_context("fork").Process(target=child, args=("close",))
    process.start(); process.join(); assert process.exitcode == 0
else:
    forked(sys.argv[1])
socket.socket(socket.AF_UNIX).connect(client.target.removeprefix("unix:"))  # gRPC's own stands already
print(client.server_info(timeout=10).model.name, client._server._process.poll(), flush=True)
client.close()
"""


@pytest.mark.parametrize("how", ["exit", "close", "with", "collect", "multiprocessing"])
def test_a_forked_child_leaves_the_server_to_its_parent(
    how: str, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(temporary))
    parent = subprocess.run(
        [sys.executable, "-c", FORKED, how], capture_output=True, text=True, check=False, timeout=60
    )
    assert (parent.stdout, parent.returncode) == ("demo None\n", 0), parent.stderr
    assert list(temporary.iterdir()) == []


def test_the_server_ends_with_its_parent_though_a_forked_child_lives(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(temporary))
    program = (
        "import gradellm.local.server, gradellm.local.processes, os, time; gradellm.local.processes._PACKAGES = ()\n"
        "from gradellm import Client; c = Client.local(); pid = os.fork()\n"
        "if not pid:\n    os.close(1); os.close(2); time.sleep(60); os._exit(0)\n"
        "print(c._server._process.pid, pid, flush=True); os.kill(os.getpid(), 9)"
    )
    parent = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    server, child = map(int, parent.stdout.split())
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and _lives(server):
            time.sleep(0.05)
        assert not _lives(server)
        assert _lives(child)
    finally:
        os.kill(child, 9)


def test_a_pause_of_this_process_is_not_the_servers_time(monkeypatch: pytest.MonkeyPatch) -> None:
    server = LocalServer({"model": "hanging", "startup_timeout_seconds": 20.0})
    clock = iter([0.0, *(1000.0 * n for n in range(1, 100))])
    monkeypatch.setattr("gradellm.local.server.time", SimpleNamespace(monotonic=lambda: next(clock)))
    try:
        pauses = server.startup()
        assert [next(pauses) for _ in range(4)] == [0.05] * 4
        with pytest.raises(LocalServerError, match="not ready within 20 s"):
            next(pauses)
    finally:
        server.close()
