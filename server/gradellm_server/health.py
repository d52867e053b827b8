"""Health by grpc.health.v1: whether the server can take calls (`ready`), and whether it should be restarted (`live`).

`ready`, the empty name and the service's own are SERVING from the end of the warm-up until the server is told to stop.
`live` is SERVING from the beginning, while a model loads and while calls are finished after a stop, too; it is
NOT_SERVING once the engine thread has ended, or has not come back from a pass for `stall_seconds`. A pass is bounded
in size (at most 512 tokens of a prompt, 2,048 on a GPU), so that a busy server is never mistaken for a dead one as
long as `stall_seconds` is more than its longest pass takes. Time in which this process did not run (SIGSTOP, a paused
virtual machine) is no time of the pass: the watcher counts what passes between its own looks, and from a look that
comes late no more than `LATE_SECONDS`.

Kubernetes' probes speak no TLS and no tokens: health, and nothing else, may be had in plain text on a port of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from gradellm_server.addresses import check_free
from gradellm_server.engine_thread import EngineFailedError, EngineThread
from gradellm_server.rpc.receive_deadline import Receiving
from gradellm_server.settings import ListenError

READY, LIVE = "ready", "live"
LOOK_SECONDS = 0.25  # well within the 2 s after which a dead engine must be known
REQUEST_SECONDS = 10.0  # for a probe to connect, and to say what it asks
# Of the port of its own, where anybody may connect: probes are small, few and soon over; watchers stay.
PORT_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.server_handshake_timeout_ms", round(1000 * REQUEST_SECONDS)),
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.max_concurrent_streams", 64),
    ("grpc.max_receive_message_length", 4096),
    ("grpc.keepalive_time_ms", 30_000),  # a host that vanished says nothing
    ("grpc.keepalive_timeout_ms", 15_000),
    ("grpc.http2.ping_timeout_ms", 15_000),
)
LATE_SECONDS = 1.0  # that count of the time before a look, at most; but never more than half of `stall_seconds`

logger = logging.getLogger(__name__)


class Health:
    """The health of one server.

    Attributes:
        servicer: what answers grpc.health.v1, on as many servers as it is added to.
    """

    def __init__(self, service_name: str, *, stall_seconds: float) -> None:
        self.servicer = health.aio.HealthServicer()
        self._ready_names = ("", service_name, READY)
        self._stall_seconds = stall_seconds
        self._silent_seconds = 0.0  # since the last sign of life of the engine, of those in which this process ran
        self._is_open = False  # between the end of the warm-up and the stop
        self._told: dict[str, bool] = {}
        self._watching: asyncio.Task[None] | None = None
        self._port: grpc.aio.Server | None = None

    async def start(self, listen: str | None = None) -> str | None:
        """Live and not ready; on an address of its own too, if there is one: the address, with its port.

        Raises:
            ListenError: where it is taken, or is none.
        """
        await self._tell(live=True, ready=False)
        if listen is None:
            return None
        check_free(listen, " for health checks")
        self._port = grpc.aio.server(options=PORT_OPTIONS, interceptors=[Receiving(REQUEST_SECONDS)])
        try:
            port = self._port.add_insecure_port(listen)
        except RuntimeError as error:
            raise ListenError(
                f"cannot listen for health checks on {listen}: the port is taken, or there is no such address"
            ) from error
        health_pb2_grpc.add_HealthServicer_to_server(self.servicer, self._port)
        await self._port.start()
        return f"{listen.rpartition(':')[0]}:{port}"

    async def open(self, thread: EngineThread) -> None:
        """Ready from now on, for as long as the thread's heart beats."""
        self._is_open = True
        await self._look(thread)
        self._watching = asyncio.create_task(self._watch(thread))

    async def close(self) -> None:
        """Not ready from now on; whether it is live goes on to be watched."""
        self._is_open = False
        await self._tell(live=self._told.get(LIVE, True), ready=False)

    async def stop(self) -> None:
        """Answer no more."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        if self._port is not None:
            await self._port.stop(0)

    async def _watch(self, thread: EngineThread) -> None:
        at_most = min(LATE_SECONDS, self._stall_seconds / 2)
        looked_at = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = time.monotonic()
            self._silent_seconds += min(now - looked_at, at_most)
            looked_at = now
            await self._look(thread)

    async def _look(self, thread: EngineThread) -> None:
        self._silent_seconds = min(self._silent_seconds, thread.heartbeat_age)
        is_stalled = self._silent_seconds > self._stall_seconds
        if thread.is_alive and is_stalled:
            logger.critical("no pass has ended for %.1f s: the engine is given up", self._silent_seconds)
            thread.give_up(EngineFailedError("does not come back from a pass", thread.restart_seconds))
        elif not thread.is_alive and not is_stalled and thread.recover():
            logger.warning("the engine has come back")
        await self._tell(live=thread.is_alive, ready=thread.is_alive and self._is_open)

    async def _tell(self, *, live: bool, ready: bool) -> None:
        for name, serves in ((LIVE, live), *((name, ready) for name in self._ready_names)):
            if self._told.get(name) != serves:
                self._told[name] = serves
                status = health_pb2.HealthCheckResponse
                await self.servicer.set(name, status.SERVING if serves else status.NOT_SERVING)
