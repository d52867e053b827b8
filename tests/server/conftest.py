"""Fixtures: a real server on a loopback port, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from gradellm.v1 import explainer_pb2 as pb
from gradellm.v1 import explainer_pb2_grpc
from gradellm_engine import Engine
from gradellm_server.observability.call import CallObserver
from gradellm_server.server import Server
from gradellm_server.settings import ServerSettings

Result = TypeVar("Result")


class RunningServer:
    """A server, and the thread with its event loop."""

    def __init__(self, engine: Engine, settings: ServerSettings, observers: Sequence[CallObserver] = ()) -> None:
        self.engine = engine
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.server = self.run(self._start(settings, observers))
        self.address = self.server.address
        self.channel = grpc.insecure_channel(self.address)
        self.stub = explainer_pb2_grpc.ExplainerServiceStub(self.channel)  # type: ignore[no-untyped-call]

    async def _start(self, settings: ServerSettings, observers: Sequence[CallObserver]) -> Server:
        server = Server(settings, observers)
        await server.start(self.engine)
        return server

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine on the server's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def close(self) -> None:
        self.channel.close()
        self.run(self.server.stop(grace_seconds=0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


def rejection(server: RunningServer, request: pb.GenerateRequest) -> tuple[grpc.StatusCode, float | None]:
    """The code of a call that the server rejects, and the seconds of its RetryInfo; None without one."""
    with pytest.raises(grpc.RpcError) as raised:
        list(server.stub.Generate(request))
    error: Any = raised.value
    status: Any = rpc_status.from_call(error)
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(retry):
            return error.code(), float(retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9)
    return error.code(), None


Serving = Callable[..., AbstractContextManager[RunningServer]]


@pytest.fixture(scope="session")
def engine(model_path: Callable[[str], Path]) -> Engine:
    return Engine.load(str(model_path("llama")))


@pytest.fixture
def serving(engine: Engine) -> Serving:
    """Starts a server with a test's settings."""

    @contextmanager
    def start(max_running: int = 16, listen: str = "127.0.0.1:0", **settings: Any) -> Iterator[RunningServer]:
        before, engine.scheduler.max_running = engine.scheduler.max_running, max_running
        running = RunningServer(engine, ServerSettings(listen=listen, **settings))
        try:
            yield running
        finally:
            running.close()
            engine.scheduler.max_running = before

    return start


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[RunningServer]:
    """One server for all tests of a module."""
    running = RunningServer(engine, ServerSettings(listen="127.0.0.1:0"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def demo(model_path: Callable[[str], Path]) -> Iterator[RunningServer]:
    """A server whose model has a chat template."""
    running = RunningServer(Engine.load(str(model_path("demo"))), ServerSettings(listen="127.0.0.1:0"))
    yield running
    running.close()
