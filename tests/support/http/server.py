"""An HTTP server whose answers a test writes byte by byte, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Received:
    """A request: headers with names in lower case, in order."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Reply:
    """Writes an answer; `chunk` after `begin` without a length."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def begin(self, status: int, headers: dict[str, str] | None = None) -> None:
        lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in (headers or {}).items())]
        lines.append("Connection: close")  # as `_serve` does
        if not any(name.lower() in ("content-length", "transfer-encoding") for name in headers or {}):
            lines.append("Transfer-Encoding: chunked")
        await self.raw("\r\n".join([*lines, "", ""]).encode())

    async def chunk(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%s\r\n" % (len(data), data))

    async def raw(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def end(self) -> None:
        await self.raw(b"0\r\n\r\n")

    def break_off(self) -> None:
        self._writer.transport.abort()

    async def json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        fixed = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
        await self.begin(status, fixed)
        await self.raw(body)

    async def events(self, *values: Any) -> None:
        """Begin a stream of events, with these."""
        await self.begin(200, {"Content-Type": "text/event-stream; charset=utf-8"})
        for value in values:
            await self.event(value)

    async def event(self, value: Any) -> None:
        await self.chunk(f"data: {json.dumps(value, separators=(',', ':'))}\n\n".encode())

    async def done(self) -> None:
        await self.chunk(b"data: [DONE]\n\n")
        await self.end()


Handler = Callable[[Received, Reply], Awaitable[None]]


class HttpServer:
    """Serves on a loopback port until it is closed.

    Attributes:
        received: all requests, as they came.
        cancelled: requests whose caller disconnected before the handler returned.
    """

    def __init__(self, handler: Handler, port: int = 0) -> None:
        self.handler = handler
        self.received: list[Received] = []
        self.cancelled: list[Received] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", port))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while (request := await self._read(reader)) is not None:
                self.received.append(request)
                answering = asyncio.ensure_future(self.handler(request, Reply(writer)))
                gone = asyncio.ensure_future(reader.read(1))
                await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():
                    self.cancelled.append(request)
                    answering.cancel()
                if not gone.done():
                    # The next request's first byte is lost with this; so the connection ends here.
                    gone.cancel()
                await asyncio.wait({answering})
                answering.result()
                break
        writer.close()

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> Received | None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        method, target, _ = first.split(" ")
        headers = tuple((name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines))
        found = dict(headers)
        body = b""
        if found.get("transfer-encoding") == "chunked":
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        elif "content-length" in found:
            body = await reader.readexactly(int(found["content-length"]))
        return Received(method, target, headers, body)

    def close(self) -> None:
        async def stop() -> None:
            self._server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

        self._run(stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
