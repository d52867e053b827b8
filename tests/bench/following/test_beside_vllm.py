"""Chats with an engine that is followed: their tokens, and the lag of their scores."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gateway.upstream.conftest import in_front_of
from gradellm_bench.following.beside_vllm import Beside, Chats, Lags, main, measure, speed_table
from gradellm_bench.network.servers import ServerError
from gradellm_engine import Engine
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer
from support.upstream.fake_vllm import MODEL, FakeVllm


@pytest.fixture(scope="module")
def explainer(model_path: Callable[[str], Path]) -> Iterator[RunningServer]:
    server = RunningServer(Engine.load(str(model_path("demo"))), ServerSettings(listen="127.0.0.1:0"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def fake(explainer: RunningServer) -> Iterator[FakeVllm]:
    fake = FakeVllm(explainer.address)
    yield fake
    fake.close()


@pytest.fixture(scope="module")
def gateway(fake: FakeVllm, explainer: RunningServer) -> Iterator[int]:
    with in_front_of(fake.url, explainer.address) as url:
        yield port_of(url)


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


def test_a_row_for_each_token(gateway: int) -> None:
    chats = Chats(gateway, MODEL, Lags())
    assert chats.lags is not None
    count = sum(chats.stream("Once upon a time", 8))
    assert len(chats.lags.seconds) == len(chats.lags.tokens) == count > 1
    assert all(seconds >= 0 for seconds in chats.lags.seconds)
    assert all(0 <= tokens < count for tokens in chats.lags.tokens)


def test_chats_that_are_not_explained_have_no_lag(gateway: int) -> None:
    explained = Chats(gateway, MODEL, Lags())
    assert sum(Chats(gateway, MODEL).stream("Once upon a time", 8)) == sum(explained.stream("Once upon a time", 8))


def test_a_refused_chat_is_an_error(gateway: int) -> None:
    with pytest.raises(ServerError, match="status 400"):
        list(Chats(gateway, MODEL).stream("Once upon a time", 1_000_000))


def test_rates_of_both(fake: FakeVllm, gateway: int) -> None:
    found = measure(Chats(port_of(fake.url), MODEL), gateway, streams=2, new_tokens=6, rounds=1)
    assert found.ratio == pytest.approx(found.followed / found.alone)
    assert len(found.lags.seconds) > 2


def test_table() -> None:
    row = speed_table([Beside(4, 20.0, 19.0, 0.95, Lags([0.1, 0.5, 0.2], [4, 9, 5]))]).splitlines()[-1]
    assert row == "| 4 | 20.0 | 19.0 | 0.950 | 200 / 200 / 500 | 5 / 5 / 9 |"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_vllm_that_does_not_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nraise SystemExit('no such model')")
    program.chmod(0o755)
    cores = os.sched_getaffinity(0)
    assert main(["--model", "model", "--vllm", str(tmp_path)]) == 70
    assert "no such model" in capsys.readouterr().err
    assert os.sched_getaffinity(0) == cores
