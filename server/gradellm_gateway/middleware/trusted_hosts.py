"""Refuses Host headers that are not the gateway's own."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gradellm_gateway.errors import error_object
from gradellm_gateway.json_response import AsciiJSONResponse

__all__ = ["TrustedHosts"]


class TrustedHosts:
    """Middleware that refuses Host headers other than the gateway's own: a protection from DNS rebinding.

    Args:
        app: the app behind it.
        names: hosts without ports; "*" for all.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app, self._names = app, {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI calls it."""
        if scope["type"] != "http" or "*" in self._names or self._is_trusted(Headers(scope=scope).get("host", "")):
            await self._app(scope, receive, send)
            return
        message = "the Host header is not a name of this gateway; to allow it, start the gateway with --allow-host NAME"
        response = AsciiJSONResponse(error_object(message, "invalid_request_error", param="host"), 400)
        await response(scope, receive, send)

    def _is_trusted(self, host: str) -> bool:
        name = host.rpartition(":")[0] if re.search(r":\d*$", host) else host
        return name.strip("[]").lower() in self._names
