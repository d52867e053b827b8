"""A gRPC server around an engine: service, health and reflection on one port."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from functools import partial

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gradellm_engine import Engine
from gradellm_server.addresses import UNIX, UnixSocket, bind_error, check_free
from gradellm_server.auth.tls import TlsFiles, server_credentials
from gradellm_server.engine_thread import EngineThread, ShuttingDownError
from gradellm_server.health import Health
from gradellm_server.observability.call import CallObserver, Watchers
from gradellm_server.observability.debugging import CHANNELZ_NAME, add_channelz
from gradellm_server.observability.metrics import Metrics
from gradellm_server.observability.metrics_server import MetricsPort
from gradellm_server.rpc import conversion
from gradellm_server.rpc.auth_interceptor import AuthInterceptor
from gradellm_server.rpc.receive_deadline import Receiving
from gradellm_server.rpc.service import ExplainerService
from gradellm_server.settings import ListenError, ServerSettings
from gradellm_server.warm_up import warm_up

LOOK_SECONDS = 0.02  # at how many calls are left
TELL_SECONDS = 1.0  # of the time to stop in: for telling streams that did not finish

HANDSHAKE_SECONDS = 20.0  # of TLS and HTTP/2
MAX_STREAMS = 1024  # calls of one connection, beside those that may wait

logger = logging.getLogger(__name__)


class Server:
    """Binds its addresses when made, so that a taken port is known before a model is loaded; serves from `start` on.

    Attributes:
        address: where it serves, with the port that was taken where 0 was asked for.
        metrics: what it counts.
    """

    def __init__(self, settings: ServerSettings, watchers: Sequence[CallObserver] = ()) -> None:
        """Bind. `watchers` are told of calls, after the metrics are.

        Raises:
            ListenError: where an address is taken or is none. Needs a running event loop.
            SecurityFileError: where certificates or tokens cannot be used.
        """
        self._settings = settings
        self.metrics = Metrics()
        self._watchers = Watchers([self.metrics, *watchers])
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),  # else a second server would silently share the port
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                # A host that vanished says nothing: it is asked, and its calls end where it does not answer.
                ("grpc.keepalive_time_ms", round(1000 * settings.keepalive_seconds)),
                ("grpc.keepalive_timeout_ms", round(500 * settings.keepalive_seconds)),
                ("grpc.http2.ping_timeout_ms", round(500 * settings.keepalive_seconds)),  # counts where this is longer
                ("grpc.keepalive_permit_without_calls", 1),
                # Clients may ask as often; by default a server cuts off who does.
                ("grpc.http2.min_ping_interval_without_data_ms", round(300 * settings.keepalive_seconds)),
                # What makes clients look names up again: nothing else does while no server fails. Calls go on.
                ("grpc.max_connection_age_ms", round(1000 * settings.connection_seconds)),
                # Who connects and says nothing is hung up on; by default after two minutes.
                ("grpc.server_handshake_timeout_ms", round(1000 * HANDSHAKE_SECONDS)),
                # More than may run and wait: those beyond must be refused, and not be held back at their client.
                ("grpc.max_concurrent_streams", MAX_STREAMS + settings.max_queued),
            ],
            interceptors=[
                *([] if settings.tokens is None else [AuthInterceptor(settings.tokens, self._watchers)]),
                Receiving(settings.receive_seconds),
            ],
        )
        self._socket = UnixSocket(settings.listen) if settings.listen.startswith(UNIX) else None
        try:
            self.address = self._bind(settings)
        except RuntimeError as error:
            raise ListenError(f"cannot listen on {settings.listen}: {bind_error(settings.listen)}") from error
        self._thread: EngineThread | None = None
        self._began = time.monotonic()
        self._health = Health(conversion.SERVICE_NAME, stall_seconds=settings.stall_seconds)
        self._is_announced = False
        self._metrics_port = self._bind_metrics(settings)

    @property
    def metrics_address(self) -> str | None:
        """Where metrics are scraped, if anywhere."""
        return None if self._metrics_port is None else self._metrics_port.address

    def _bind_metrics(self, settings: ServerSettings) -> MetricsPort | None:
        if settings.metrics_listen is None:
            return None
        try:
            return MetricsPort(settings.metrics_listen, self.metrics.registry)
        except ListenError as error:
            if settings.metrics_required:
                raise
            logger.warning("without metrics: %s", error)
            return None

    def _bind(self, settings: ServerSettings) -> str:
        """The address that is bound."""
        if self._socket is not None:
            self._socket.take(partial(self._add_port, settings))
            return settings.listen
        check_free(settings.listen)
        return f"{settings.listen.rpartition(':')[0]}:{self._add_port(settings, settings.listen)}"

    def _add_port(self, settings: ServerSettings, address: str) -> int:
        if settings.tls_cert is None or settings.tls_key is None:
            return self._server.add_insecure_port(address)
        files = TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        return self._server.add_secure_port(address, server_credentials(files))

    @property
    def engine_thread(self) -> EngineThread:
        """The thread that runs the model, once started."""
        if self._thread is None:
            raise RuntimeError("the server has not been started")
        return self._thread

    async def announce(self) -> str | None:
        """Tell on the port for health that the server lives and is not ready yet; its address, if it has one.

        Raises:
            ListenError: where the address is taken or is none.
        """
        self._is_announced = True
        return await self._health.start(self._settings.health_listen)

    async def start(self, engine: Engine) -> None:
        """Warm the engine up, then serve it.

        Raises:
            EngineError: where the model fails in the warm-up.
        """
        settings = self._settings
        if not self._is_announced:
            await self.announce()
        self._thread = EngineThread(
            engine,
            max_queued=settings.max_queued,
            max_queued_tokens=settings.max_queued_tokens,
            reader_timeout_seconds=settings.reader_timeout_seconds,
        )
        await warm_up(engine, self._thread)
        self.metrics.watch_engine(engine, self._thread)
        service = ExplainerService(
            engine, self._thread, max_message_bytes=settings.max_message_bytes, watchers=self._watchers
        )
        self._server.add_generic_rpc_handlers((service.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health.servicer, self._server)
        names = [conversion.SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME]
        if settings.debug:
            add_channelz(self._server)
            names.append(CHANNELZ_NAME)
        reflection.enable_server_reflection(names, self._server)
        await self._server.start()
        self._thread.restart_seconds = max(1.0, time.monotonic() - self._began)
        await self._health.open(self._thread)

    async def stop(self, grace_seconds: float) -> bool:
        """Be not ready, refuse new calls, let running ones finish for so long, then end.

        Returns whether the engine's thread has ended, too; it may be in a long pass.
        """
        until = time.monotonic() + grace_seconds
        await self._health.close()
        ended = True
        if self._thread is not None:
            self._thread.drain()
            telling = min(TELL_SECONDS, grace_seconds / 10)
            while self._thread.num_placed and time.monotonic() < until - telling:  # noqa: ASYNC110 (of another thread)
                await asyncio.sleep(LOOK_SECONDS)
            self._thread.end_all(ShuttingDownError(self._thread.restart_seconds))
        await self._server.stop(max(0.0, until - time.monotonic()))
        if self._socket is not None:
            self._socket.remove()
        if self._thread is not None:
            left = max(TELL_SECONDS, until - time.monotonic())
            ended = await asyncio.to_thread(self._thread.stop, left)
        await self._health.stop()
        if self._metrics_port is not None:
            await asyncio.to_thread(self._metrics_port.close)
        return ended

    async def wait(self) -> None:
        """Until the server has ended."""
        await self._server.wait_for_termination()
