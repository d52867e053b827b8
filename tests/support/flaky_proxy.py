"""A TCP proxy that cuts connections after some bytes, as a server that dies does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any


class FlakyProxy:
    """Forwards bytes between clients and the server at `address`.

    Attributes:
        target: address for clients.
        num_cuts: connections that were cut.
    """

    def __init__(self, address: str, allowances: Iterator[int | None]) -> None:
        """`allowances`: for each connection, the bytes from the server after which it is cut; None for no limit."""
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._allowances = allowances
        self._writers: set[asyncio.StreamWriter] = set()
        self.num_cuts = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: asyncio.Server = self._run(asyncio.start_server(self._serve, "127.0.0.1", 0)).result(10)
        self.target = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def _run(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        allowance = next(self._allowances, None)
        self._writers.add(writer)
        there: asyncio.StreamWriter | None = None
        with suppress(OSError):
            back, there = await asyncio.open_connection(self._host, self._port)
            self._writers.add(there)
            up = asyncio.ensure_future(self._pass_on(reader, there, None))
            await self._pass_on(back, writer, allowance)
            up.cancel()
        for one in (writer, there):
            if one is not None:
                self._writers.discard(one)
                one.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, allowance: int | None) -> None:
        while data := await reader.read(256):
            if allowance is not None and (allowance := allowance - len(data)) < 0:
                self.num_cuts += 1
                return
            writer.write(data)
            await writer.drain()

    def cut(self) -> None:
        """Cut all connections off, now."""

        async def abort() -> None:
            for writer in list(self._writers):
                writer.transport.abort()

        self._run(abort()).result(10)

    def close(self) -> None:
        """Take no more connections, and end those that are."""
        self.cut()
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


@contextmanager
def cutting(address: str, allowances: Iterator[int | None]) -> Iterator[FlakyProxy]:
    """A proxy while it is needed."""
    proxy = FlakyProxy(address, allowances)
    try:
        yield proxy
    finally:
        proxy.close()
