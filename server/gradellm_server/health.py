"""Health by grpc.health.v1: `ready` (the server takes calls) and `live` (the process need not be restarted).

`ready`, the empty name and the service's own name are SERVING from the end of the warm-up until the server begins to
stop. `live` is SERVING from the start, also while a model loads and while a stopping server drains; it is NOT_SERVING
once the engine thread has ended or is stalled (`engine_loop.stall_watchdog`).

Kubernetes' probes support neither TLS nor tokens: health alone is also served in plain text on a port of its own.
"""

from __future__ import annotations

import asyncio
import contextlib

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from gradellm_server.addresses import check_free
from gradellm_server.engine_loop.engine_thread import EngineThread
from gradellm_server.engine_loop.stall_watchdog import StallWatchdog
from gradellm_server.rpc.receive_deadline import ReceiveDeadline
from gradellm_server.settings import ListenError

READY, LIVE = "ready", "live"
REQUEST_SECONDS = 10.0  # for a probe to connect and to send its request
# Anyone may connect to the health port: its limits allow few, small and short calls, and Watch.
PORT_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", round(1000 * REQUEST_SECONDS)),
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.max_concurrent_streams", 64),
    ("grpc.max_receive_message_length", 4096),
    ("grpc.keepalive_time_ms", 30_000),  # a host that vanished closes no connection
    ("grpc.keepalive_timeout_ms", 15_000),
    ("grpc.http2.ping_timeout_ms", 15_000),
)


class Health:
    """The health of one server.

    Attributes:
        servicer: implements grpc.health.v1; it can be added to several servers.
    """

    def __init__(self, service_name: str, *, stall_seconds: float) -> None:
        self.servicer = health.aio.HealthServicer()
        self._ready_names = ("", service_name, READY)
        self._stall_seconds = stall_seconds
        self._is_open = False  # between the end of the warm-up and the stop
        self._published: dict[str, bool] = {}
        self._watchdog: asyncio.Task[None] | None = None
        self._port: grpc.aio.Server | None = None

    async def start(self, listen: str | None = None) -> str | None:
        """Publish `live`, and not yet `ready`; on a port of its own too if `listen` is given. Returns its address.

        Raises:
            ListenError: if the address is in use or does not exist.
        """
        await self._publish(live=True, ready=False)
        if listen is None:
            return None
        check_free(listen, " for health checks")
        self._port = grpc.aio.server(options=PORT_OPTIONS, interceptors=[ReceiveDeadline(REQUEST_SECONDS)])
        try:
            port = self._port.add_insecure_port(listen)
        except RuntimeError as error:
            raise ListenError(
                f"cannot listen on {listen} for health checks: the port is in use, or the address does not exist"
            ) from error
        health_pb2_grpc.add_HealthServicer_to_server(self.servicer, self._port)
        await self._port.start()
        return f"{listen.rpartition(':')[0]}:{port}"

    async def open(self, thread: EngineThread) -> None:
        """Publish `ready`, and watch the engine thread from now on."""
        self._is_open = True
        watchdog = StallWatchdog(thread, self._stall_seconds)

        async def publish() -> None:
            await self._publish(live=thread.is_alive, ready=thread.is_alive and self._is_open)

        watchdog.check()
        await publish()
        self._watchdog = asyncio.create_task(watchdog.run(publish))

    async def close(self) -> None:
        """Publish that the server is not ready; `live` still follows the engine thread."""
        self._is_open = False
        await self._publish(live=self._published.get(LIVE, True), ready=False)

    async def stop(self) -> None:
        """End the watchdog and the health port."""
        if self._watchdog is not None:
            self._watchdog.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watchdog
        if self._port is not None:
            await self._port.stop(0)

    async def _publish(self, *, live: bool, ready: bool) -> None:
        for name, serves in ((LIVE, live), *((name, ready) for name in self._ready_names)):
            if self._published.get(name) != serves:
                self._published[name] = serves
                status = health_pb2.HealthCheckResponse
                await self.servicer.set(name, status.SERVING if serves else status.NOT_SERVING)
