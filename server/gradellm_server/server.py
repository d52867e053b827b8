"""The gRPC server of an engine: service, health and reflection on one port."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from gradellm_engine import Engine
from gradellm_server.addresses import UNIX, UnixSocket, bind_error, check_free
from gradellm_server.auth.tls import TlsFiles, server_credentials
from gradellm_server.engine_loop.engine_thread import EngineThread
from gradellm_server.engine_loop.errors import ShuttingDownError
from gradellm_server.health import Health
from gradellm_server.observability.call import CallObserver, CallObservers
from gradellm_server.observability.debugging import CHANNELZ_NAME, add_channelz
from gradellm_server.observability.metrics import Metrics
from gradellm_server.observability.metrics_server import MetricsServer
from gradellm_server.reflection import add_reflection
from gradellm_server.rpc.auth_interceptor import AuthInterceptor
from gradellm_server.rpc.receive_deadline import ReceiveDeadline
from gradellm_server.rpc.rpcs import SERVICE_NAME
from gradellm_server.rpc.service import ExplainerService
from gradellm_server.settings import ListenError, ServerSettings
from gradellm_server.warm_up import warm_up

DRAIN_CHECK_SECONDS = 0.02
ABORT_SECONDS = 1.0  # part of the grace period: for sending the status of streams that did not finish

HANDSHAKE_SECONDS = 20.0  # of TLS and HTTP/2
MAX_STREAMS = 1024  # calls of one connection, in addition to those that may be queued

logger = logging.getLogger(__name__)


class Server:
    """A server. It binds its addresses when it is made, before a model is loaded, and serves from `start` on.

    Attributes:
        address: where it serves, with the port that was bound for port 0.
        metrics: its Prometheus metrics.
    """

    def __init__(self, settings: ServerSettings, observers: Sequence[CallObserver] = ()) -> None:
        """Bind the addresses; on a running event loop. Calls are observed by the metrics first, then by `observers`.

        Raises:
            ListenError: if an address is in use, or does not exist.
            SecurityFileError: if certificates or tokens cannot be used.
        """
        self._settings = settings
        self.metrics = Metrics()
        self._observers = CallObservers([self.metrics, *observers])
        self._server = grpc.aio.server(
            options=_channel_options(settings),
            interceptors=[
                *([] if settings.tokens is None else [AuthInterceptor(settings.tokens, self._observers)]),
                ReceiveDeadline(settings.receive_seconds),
            ],
        )
        self._socket = UnixSocket(settings.listen) if settings.listen.startswith(UNIX) else None
        try:
            self.address = self._bind(settings)
        except RuntimeError as error:
            raise ListenError(f"cannot listen on {settings.listen}: {bind_error(settings.listen)}") from error
        self._thread: EngineThread | None = None
        self._created_at = time.monotonic()
        self._health = Health(SERVICE_NAME, stall_seconds=settings.stall_seconds)
        self._serves_health = False
        self._metrics_server = self._bind_metrics(settings)

    @property
    def metrics_address(self) -> str | None:
        """Address of the metrics server; None without one."""
        return None if self._metrics_server is None else self._metrics_server.address

    @property
    def engine_thread(self) -> EngineThread:
        """The thread that runs the model, once started."""
        if self._thread is None:
            raise RuntimeError("the server has not been started")
        return self._thread

    async def serve_health(self) -> str | None:
        """Serve health on its own port, as live and not yet ready; returns its address, if there is such a port.

        Raises:
            ListenError: if the address is in use, or does not exist.
        """
        self._serves_health = True
        return await self._health.start(self._settings.health_listen)

    async def start(self, engine: Engine) -> None:
        """Warm the engine up, then serve it.

        Raises:
            DefaultPresetError: if the default attribution is not defined for the model.
            EngineError: if the model fails in the warm-up.
        """
        settings = self._settings
        if not self._serves_health:
            await self.serve_health()
        self._thread = EngineThread(
            engine,
            max_queued=settings.max_queued,
            max_queued_tokens=settings.max_queued_tokens,
            reader_timeout_seconds=settings.reader_timeout_seconds,
        )
        await warm_up(engine, self._thread, settings.default_attribution)
        self.metrics.attach_engine(engine, self._thread)
        service = ExplainerService(
            engine,
            self._thread,
            max_message_bytes=settings.max_message_bytes,
            follow_idle_seconds=settings.follow_idle_seconds,
            default_attribution=settings.default_attribution,
            observers=self._observers,
        )
        self._server.add_generic_rpc_handlers((service.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health.servicer, self._server)
        names = [SERVICE_NAME, health.SERVICE_NAME]
        if settings.debug:
            add_channelz(self._server)
            names.append(CHANNELZ_NAME)
        add_reflection(self._server, names)
        await self._server.start()
        self._thread.restart_seconds = max(1.0, time.monotonic() - self._created_at)
        await self._health.open(self._thread)

    async def stop(self, grace_seconds: float) -> bool:
        """Drain: become not ready, reject new calls, let running calls finish within the grace period, then end.

        Returns whether the engine thread has ended too; it may be in a long pass.
        """
        until = time.monotonic() + grace_seconds
        await self._health.close()
        has_ended = True
        if self._thread is not None:
            self._thread.drain()
            reserved = min(ABORT_SECONDS, grace_seconds / 10)
            while self._thread.num_unfinished and time.monotonic() < until - reserved:  # noqa: ASYNC110 (on a thread)
                await asyncio.sleep(DRAIN_CHECK_SECONDS)
            self._thread.end_all(ShuttingDownError(self._thread.restart_seconds))
        await self._server.stop(max(0.0, until - time.monotonic()))
        if self._socket is not None:
            self._socket.remove()
        if self._thread is not None:
            left = max(ABORT_SECONDS, until - time.monotonic())
            has_ended = await asyncio.to_thread(self._thread.stop, left)
        await self._health.stop()
        if self._metrics_server is not None:
            await asyncio.to_thread(self._metrics_server.close)
        return has_ended

    async def wait(self) -> None:
        """Wait until the server has ended."""
        await self._server.wait_for_termination()

    def _bind(self, settings: ServerSettings) -> str:
        """Bind the server's address, and return it."""
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

    def _bind_metrics(self, settings: ServerSettings) -> MetricsServer | None:
        if settings.metrics_listen is None:
            return None
        try:
            return MetricsServer(settings.metrics_listen, self.metrics.registry)
        except ListenError as error:
            if settings.metrics_required:
                raise
            logger.warning("Serving without metrics: %s", error)
            return None


def _channel_options(settings: ServerSettings) -> list[tuple[str, Any]]:
    keepalive_ms = 1000 * settings.keepalive_seconds
    return [
        ("grpc.so_reuseport", 0),  # else a second server would silently share the port
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        # A host that vanished closes no connection: pings find it, and its calls end.
        ("grpc.keepalive_time_ms", round(keepalive_ms)),
        ("grpc.keepalive_timeout_ms", round(0.5 * keepalive_ms)),
        ("grpc.http2.ping_timeout_ms", round(0.5 * keepalive_ms)),  # the longer of the two timeouts holds
        ("grpc.keepalive_permit_without_calls", 1),
        # Clients may ping as often; by default gRPC closes the connection of a client that does.
        ("grpc.http2.min_ping_interval_without_data_ms", round(0.3 * keepalive_ms)),
        # Clients resolve names again only when a connection ends; running calls continue.
        ("grpc.max_connection_age_ms", round(1000 * settings.connection_seconds)),
        # A connection without a handshake is closed; by default after two minutes.
        ("grpc.server_handshake_timeout_ms", round(1000 * HANDSHAKE_SECONDS)),
        # Above the limits of running and queued requests: calls beyond them must be rejected, not held back by HTTP/2.
        ("grpc.max_concurrent_streams", MAX_STREAMS + settings.max_queued),
    ]
