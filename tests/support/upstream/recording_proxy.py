"""A proxy between gateway and upstream, in the same run, that records what the upstream answered."""

from __future__ import annotations

from dataclasses import dataclass

import httpx2

from support.http.server import HttpServer, Received, Reply


@dataclass(frozen=True)
class Recorded:
    """A request as it came from the gateway, and the upstream's answer to it."""

    request: Received
    status: int
    body: bytes


class RecordingProxy(HttpServer):
    """Passes everything on to a server, given as http://HOST:PORT."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.recorded: list[Recorded] = []
        super().__init__(self._pass_on)

    async def _pass_on(self, request: Received, reply: Reply) -> None:
        headers = [(name, value) for name, value in request.headers if name not in ("host", "transfer-encoding")]
        body = b""
        async with (
            httpx2.AsyncClient(timeout=300, trust_env=False) as client,
            client.stream(
                request.method, self._address + request.target, headers=headers, content=request.body
            ) as answer,
        ):
            await reply.begin(answer.status_code, {"Content-Type": answer.headers.get("content-type", "text/plain")})
            async for data in answer.aiter_raw():
                body += data
                await reply.chunk(data)
            await reply.end()
        self.recorded.append(Recorded(request, answer.status_code, body))
