"""A server of one's own: started, asked, ended; and what is said where it does not start."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from gradellm import AsyncClient, Client, LocalServerError

pytestmark = pytest.mark.usefixtures("server_module")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where sockets lie, to see that nothing is left behind."""
    directory = tmp_path / "t"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


def process(client: Client) -> subprocess.Popen[bytes]:
    assert client._server is not None
    return client._server._process


def test_it_starts_answers_and_ends(temporary: Path) -> None:
    with Client.local(model="m", dtype="bfloat16", device="cuda:1") as client:
        model = client.server_info().model
        assert (model.name, model.dtype, model.device) == ("m", "bfloat16", "cuda:1")
        assert client.target.startswith("unix:")
        assert len(client.target) < 108
        assert process(client).poll() is None
    assert process(client).returncode == 0
    assert list(temporary.iterdir()) == []
    client.close()  # once more does no harm


def test_it_starts_for_asyncio(temporary: Path) -> None:
    async def use() -> str:
        async with await AsyncClient.local(server_args=["--num-late-answers", "2"]) as client:
            return (await client.server_info()).model.name

    assert asyncio.run(use()) == "demo"
    assert list(temporary.iterdir()) == []


def test_it_may_answer_late() -> None:
    with Client.local(server_args=["--num-late-answers", "3"]) as client:
        assert client.server_info().model.name == "demo"


def test_a_failing_start_has_the_servers_own_words(temporary: Path) -> None:
    with pytest.raises(
        LocalServerError, match=r"(?s)exit code 1 before it was ready.*error: there is no model absent"
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
    monkeypatch.setattr("gradellm.local._STOP_SECONDS", 0.3)
    client = Client.local(model="stubborn")
    client.close()
    assert process(client).returncode == -9


def test_the_child_ends_with_its_parent(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(temporary))  # its socket stays behind, as nobody is there to remove it
    program = (
        "import gradellm.local, gradellm.processes, os; gradellm.processes._PACKAGES = ()\n"
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


def test_its_log_may_be_let_through(capfd: pytest.CaptureFixture[str]) -> None:
    Client.local(inherit_stderr=True).close()
    assert "loading demo" in capfd.readouterr().err


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradellm.processes._PACKAGES", ("json", "no_such_package"))
    with pytest.raises(LocalServerError, match=r"needs no_such_package, .*pip install 'gradellm\[server\]'"):
        Client.local()


def test_unknown_keywords_are_refused() -> None:
    keywords: Any = {"modle": "m"}
    with pytest.raises(TypeError, match="no keyword modle; it has model, dtype"):
        Client.local(**keywords)
