"""A caller's HTTP exchange as ASGI has it: its body, its disconnect, and an answer that may break off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import suppress
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from gradellm_gateway.errors import error_object
from gradellm_gateway.upstream.connection import UpstreamError
from gradellm_gateway.upstream.headers import Headers

__all__ = ["Caller", "CallerGoneError"]


class CallerGoneError(Exception):
    """The caller disconnected before its request was complete."""


class Caller:
    """One request of a caller, and the answer to it.

    Attributes:
        method: the HTTP method.
        headers: of the request.
        target: path and query as the caller wrote them.
        has_begun: whether an answer was begun.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.method: str = scope["method"]
        self.headers: Headers = list(scope["headers"])
        path: bytes = scope.get("raw_path") or scope["path"].encode()
        query: bytes = scope.get("query_string", b"")
        self.target = path.partition(b"?")[0] + (b"?" + query if query else b"")
        self.has_begun = False
        self._read: bytes = b""  # that `read` returned, and `body` yields again
        self._is_read = asyncio.Event()

    def header(self, name: bytes) -> str:
        """Return a header's first value; empty if it is absent."""
        return next((value for key, value in self.headers if key.lower() == name), b"").decode("latin-1")

    @property
    def has_body(self) -> bool:
        """Whether the request announces a body."""
        return bool(self.header(b"content-length") or self.header(b"transfer-encoding"))

    async def read(self, most: int) -> bytes:
        """Read the body, or its beginning of more than `most` bytes. Raises CallerGoneError."""
        read = bytearray()
        while not self._is_read.is_set() and len(read) <= most:
            read += await self._next()
        self._read = bytes(read)
        return self._read

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the body, also what was read of it already. Raises CallerGoneError."""
        if self._read:
            yield self._read
        while not self._is_read.is_set():
            if data := await self._next():
                yield data

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise CallerGoneError
        if not message.get("more_body", False):
            self._is_read.set()
        data: bytes = message.get("body", b"")
        return data

    async def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, which answers the request; it is cancelled if the caller disconnects.

        A failure of the upstream is the answer, or ends the connection of an answer that was begun.
        """
        working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                working.cancel()
            with suppress(asyncio.CancelledError, CallerGoneError):
                await working
        except UpstreamError as error:
            if not self.has_begun:
                body = error_object(str(error), "server_error", code=error.code)
                await self.answer_json(error.status, body, [(b"retry-after", b"1")] if error.status == 503 else [])
            # Else the response stays incomplete, and uvicorn closes the connection, as the upstream did.
        finally:
            leaving.cancel()
            working.cancel()

    async def _gone(self) -> None:
        await self._is_read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def begin(self, status: int, headers: Headers) -> None:
        """Begin the answer."""
        self.has_begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes) -> None:
        """Send a part of the answer's body; waits while the caller does not read."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """Complete the answer."""
        message: Message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer."""
        await self.begin(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self.write(body)
        await self.end()

    async def answer_json(self, status: int, value: Mapping[str, Any], headers: Headers | None = None) -> None:
        """Send a JSON value as a whole answer, in ASCII: it may quote lone surrogates."""
        await self.answer(
            status, [(b"content-type", b"application/json"), *(headers or [])], json.dumps(value).encode()
        )
