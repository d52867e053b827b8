"""Routes behind all others: unknown paths and methods."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

__all__ = ["fallback_routes"]


def fallback_routes(api: Sequence[Route], passing: Sequence[Route]) -> list[Route]:
    """Routes after the API's own, for unknown paths (404) and methods that a path does not allow (405).

    `passing` are those that an upstream serves, any but the gateway's own.
    """

    async def refuse(request: Request) -> Response:
        methods = {
            method
            for route in api
            if route.matches(request.scope)[0] is Match.PARTIAL
            for method in route.methods or ()
        }
        if methods:
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(methods))})
        raise HTTPException(404)

    own = "/v1/gradellm/{rest:path}" if passing else "/v1/{rest:path}"
    paths = [own, *(route.path for route in api if not route.path.startswith("/v1/"))]
    refusing = [Route(path, _AnyMethod(refuse)) for path in (*paths, *([] if passing else ["/v1"]))]
    return [*refusing, *passing]


class _AnyMethod:
    """An endpoint for every method: Starlette restricts a plain function to GET."""

    def __init__(self, respond: Callable[[Request], Awaitable[Response]]) -> None:
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._respond(Request(scope, receive, send))
        await response(scope, receive, send)
