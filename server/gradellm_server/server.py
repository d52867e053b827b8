"""A gRPC server around an engine: service, health and reflection on one port."""

from __future__ import annotations

import logging

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gradellm_engine import Engine
from gradellm_server import translate
from gradellm_server.engine_thread import EngineThread
from gradellm_server.service import ExplainerService
from gradellm_server.settings import ListenError, ServerSettings

logger = logging.getLogger(__name__)


class Server:
    """Binds its address when made, so that a taken port is known before a model is loaded; serves from `start` on."""

    def __init__(self, settings: ServerSettings) -> None:
        """Bind.

        Raises:
            ListenError: where the address is taken or is none. Needs a running event loop.
        """
        self._settings = settings
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),  # else a second server would silently share the port
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", -1),
            ]
        )
        try:
            port = self._server.add_insecure_port(settings.listen)
        except RuntimeError as error:
            raise ListenError(
                f"cannot listen on {settings.listen}: the port is taken, or there is no such address"
            ) from error
        host = settings.listen.rpartition(":")[0]
        self.address = settings.listen if settings.listen.startswith("unix:") else f"{host}:{port}"
        self._thread: EngineThread | None = None
        self._health = health.aio.HealthServicer()

    @property
    def engine_thread(self) -> EngineThread:
        """The thread that runs the model, once started."""
        if self._thread is None:
            raise RuntimeError("the server has not been started")
        return self._thread

    async def start(self, engine: Engine) -> None:
        """Serve the engine."""
        settings = self._settings
        self._thread = EngineThread(
            engine, max_queued=settings.max_queued, max_queued_tokens=settings.max_queued_tokens
        )
        service = ExplainerService(engine, self._thread, max_message_bytes=settings.max_message_bytes)
        self._server.add_generic_rpc_handlers((service.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (translate.SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        for name in ("", translate.SERVICE_NAME):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()

    async def stop(self, grace_seconds: float) -> None:
        """Refuse new calls, let running ones finish for so long, then end."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_seconds)
        if self._thread is not None:
            self._thread.stop()

    async def wait(self) -> None:
        """Until the server has ended."""
        await self._server.wait_for_termination()
