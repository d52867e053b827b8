"""A tensor-parallel server with two ranks: it serves, drains, and ends as a whole if a rank is lost."""

from __future__ import annotations

import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from gradellm import Client, UnavailableError
from gradellm_server.health import LIVE, READY
from support.rank_programs import start_ranks
from trials.serving import SERVING, Served, free_port

PROMPT = "Once upon a time"
READY_SECONDS = 120
LOST_SECONDS = 20  # a generous limit

Ranks = tuple[Served, list[subprocess.Popen[str]], str]


@pytest.fixture
def ranks(model_path: Callable[[str], Path]) -> Iterator[Ranks]:
    """Rank 0 as a server, and both processes."""
    address, health, metrics = (f"127.0.0.1:{free_port()}" for _ in range(3))
    command = ["-m", "gradellm_server", "--tensor-parallel", "--model", str(model_path("llama")), "--kv-memory", "4MiB"]
    command += ["--listen", address, "--health-port", health, "--metrics-listen", metrics, "--threads", "1"]
    command += ["--grace-seconds", "60"]
    started = start_ranks(command)
    server = Served(started[0], address, health)
    try:
        _until(lambda: _health(server, READY) == SERVING, READY_SECONDS, started)
        yield server, started, metrics
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_a_tensor_parallel_server_serves_and_drains(ranks: Ranks) -> None:
    server, started, metrics = ranks
    with Client(server.address) as client:
        assert client.server_info().model.device == "cpu of 2 ranks"
        first = client.explain(PROMPT, max_new_tokens=8, temperature=0.0)
        again = client.explain(PROMPT, max_new_tokens=8, temperature=0.0)
        assert [token.id for token in first.tokens] == [token.id for token in again.tokens]
        assert len(first.scores) == 8
        number = client.explain(PROMPT, max_new_tokens=8, temperature=1.0, seed=3, regex="[0-9]{3}(a|b)")
        assert re.fullmatch("[0-9]{3}(a|b)", number.text)
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as answer:
            assert b"gradellm_num_requests_running" in answer.read()
        events = client.generate(PROMPT, max_new_tokens=30, temperature=0.0)
        next(events)
        for process in started:  # a launcher signals all ranks
            process.send_signal(signal.SIGTERM)
        assert sum(event.token is not None for event in events) > 0
    assert [process.wait(3 * LOST_SECONDS) for process in started] == [0, 0]


def test_a_lost_rank_ends_the_group(ranks: Ranks) -> None:
    server, (first, second), _ = ranks
    time.sleep(1)  # found even without a running request
    second.kill()
    _until(lambda: _health(server, READY) not in (SERVING, None), LOST_SECONDS)
    assert _health(server, LIVE) != SERVING
    assert first.wait(LOST_SECONDS) == 1
    assert "rank" in first.communicate()[0]


def test_streams_of_a_lost_rank_end_as_unavailable(ranks: Ranks) -> None:
    server, (first, second), _ = ranks
    with Client(server.address, retry=None) as client:
        events = client.generate(PROMPT, max_new_tokens=200, temperature=0.0)
        for _, event in zip(range(6), events, strict=False):
            assert event.finished is None
        second.kill()
        with pytest.raises(UnavailableError):
            list(events)
    assert first.wait(LOST_SECONDS) == 1


def test_followers_end_when_rank_0_ends(ranks: Ranks) -> None:
    _, (first, second), _ = ranks
    first.kill()
    assert second.wait(LOST_SECONDS) == 1
    assert "rank 0 of this model's 2 is lost" in second.communicate()[0]


def _health(server: Served, service: str) -> int | None:
    """The status of a health service; None without a response."""
    try:
        return server.health(service, timeout=1.0)
    except grpc.RpcError:
        return None


def _until(holds: Callable[[], bool], seconds: float, processes: list[subprocess.Popen[str]] | None = None) -> None:
    limit = time.monotonic() + seconds
    while not holds():
        for process in processes or ():
            assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit
        time.sleep(0.1)
