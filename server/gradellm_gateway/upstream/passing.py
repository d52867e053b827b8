"""Passes requests on to the upstream, and its answers back, as they are."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from starlette.types import Receive, Scope, Send

from gradellm_gateway.errors import error_object
from gradellm_gateway.upstream.caller import Caller
from gradellm_gateway.upstream.connection import Upstream, UpstreamResponse
from gradellm_gateway.upstream.headers import request_headers, response_headers

__all__ = ["PassingRoute", "pass_answer", "pass_request", "path_below"]

_PREFIX = b"/v1"


class PassingRoute:
    """An endpoint for any method that is the upstream's."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, as ASGI calls it."""
        caller = Caller(scope, receive, send)
        await caller.run(pass_request(caller, self._upstream))


async def pass_request(caller: Caller, upstream: Upstream) -> None:
    """Send a caller's request on, and the answer back. Raises UpstreamError."""
    target = path_below(caller)
    if target is None:
        error = error_object("the path has a part . or .., which is not passed on", "invalid_request_error")
        await caller.answer_json(400, error)
        return
    headers = request_headers(caller.headers, upstream.host)
    if caller.header(b"transfer-encoding"):
        headers.append((b"transfer-encoding", b"chunked"))
    if not caller.has_body:
        await caller.read(0)  # so that a disconnect is noticed
    async with upstream.send(caller.method, target, headers, caller.body()) as response:
        await pass_answer(caller, response)


async def pass_answer(caller: Caller, response: UpstreamResponse) -> None:
    """Send an answer of the upstream on as it comes. Raises UpstreamError where it breaks off."""
    await caller.begin(response.status, response_headers(response.headers))
    async for data in response.body():
        await caller.write(data)
    await caller.end()


def path_below(caller: Caller) -> bytes | None:
    """Return a request's path below /v1, with its query; None for one with dot segments, which could lead elsewhere."""
    target = caller.target.removeprefix(_PREFIX)
    path = unquote_to_bytes(target.partition(b"?")[0])
    return None if re.search(rb"(^|[/\\])\.{1,2}([/\\]|$)", path) else target
