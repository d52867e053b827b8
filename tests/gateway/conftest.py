"""A gateway on a loopback port in front of a real server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import openai
import pytest
import uvicorn

from gradellm import AsyncClient
from gradellm_gateway.app import gateway as make_app
from gradellm_gateway.connections import Limits, uvicorn_config
from gradellm_gateway.upstream.routes import UpstreamRoutes
from server.conftest import RunningServer, engine, server, serving

__all__ = ["engine", "server", "serving"]

Gateway = Callable[..., AbstractContextManager[str]]


@contextmanager
def running(
    target: str,
    *,
    allow_origins: tuple[str, ...] = (),
    allow_hosts: tuple[str, ...] = ("*",),
    limits: Limits | None = None,
    upstream: Callable[[AsyncClient], UpstreamRoutes] | None = None,
    settings: Mapping[str, Any] | None = None,
    **client: Any,
) -> Iterator[str]:
    """The URL of a gateway that runs until the context is left. `settings` are other keywords of the app."""
    explainer = AsyncClient(target, **client)
    routes = upstream(explainer) if upstream is not None else None
    app = make_app(explainer, upstream=routes, allow_origins=allow_origins, allow_hosts=allow_hosts, **(settings or {}))
    process = uvicorn.Server(uvicorn_config(app, limits=limits, port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=process.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not process.started and time.monotonic() < until:
        time.sleep(0.01)
    port = process.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def url(server: RunningServer) -> Iterator[str]:
    """One gateway for all tests of a module."""
    with running(server.address) as url:
        yield url


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    """OpenAI's own client, without a token."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)  # pragma: allowlist secret (none)
