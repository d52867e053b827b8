"""A gateway in front of a fake vLLM, both on one real server with a tiny model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.conftest import running, server, serving
from gradellm import AsyncClient
from gradellm.models import UpstreamDtype
from gradellm_engine import Engine
from gradellm_gateway.upstream.connection import Timeouts, Upstream
from gradellm_gateway.upstream.followed_answer import FollowSettings
from gradellm_gateway.upstream.routes import UpstreamRoutes
from server.conftest import RunningServer
from support.http.calls import send
from support.upstream.fake_vllm import FakeVllm

__all__ = ["server", "serving"]


@contextmanager
def in_front_of(
    url: str,
    target: str,
    *,
    idle_seconds: float = 20.0,
    wait_seconds: float = 20.0,
    dtype: UpstreamDtype = "float32",
    token: str | None = None,
    refusals: list[str] | None = None,
    is_compared: bool = True,
    **gateway: Any,
) -> Iterator[str]:
    """The URL of a gateway in front of an upstream, once it has compared the models."""

    def routes(client: AsyncClient) -> UpstreamRoutes:
        upstream = Upstream(url, timeouts=Timeouts(2.0, idle_seconds), token=token)
        refused = refusals.append if refusals is not None else print
        return UpstreamRoutes(upstream, client, FollowSettings(dtype, wait_seconds), refused)

    with running(target, upstream=routes, **gateway) as own:
        until = time.monotonic() + 20
        while is_compared and time.monotonic() < until and not send(own, "GET", "/healthz")[2].get("explains"):
            time.sleep(0.02)
        yield own


@pytest.fixture(scope="session")
def engine(model_path: Callable[[str], Path]) -> Engine:
    """The demo model's, whose answers are words."""
    return Engine.load(str(model_path("demo")))


@pytest.fixture
def vllm(server: RunningServer) -> Iterator[FakeVllm]:
    fake = FakeVllm(server.address)
    yield fake
    fake.close()


@pytest.fixture
def url(vllm: FakeVllm, server: RunningServer) -> Iterator[str]:
    with in_front_of(vllm.url, server.address) as url:
        vllm.received.clear()
        yield url
