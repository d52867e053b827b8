"""API keys of the gateway's own: the simple case, in which all callers may do the same."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gradellm_gateway.errors import error_object
from gradellm_gateway.json_response import AsciiJSONResponse

__all__ = ["GUARDED", "ApiKeys"]

GUARDED = "/v1"  # paths that begin so need a key, as vLLM's: probes, metrics and /tokenize need none


class ApiKeys:
    """Middleware that answers 401 where a request below /v1 has no bearer token that is one of the keys.

    Keys are kept as hashes, compared in constant time, and never logged or quoted.

    Args:
        app: the app behind it.
        keys: any of which is accepted.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self._app, self._digests = app, [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI calls it."""
        is_guarded = scope["type"] == "http" and scope["method"] != "OPTIONS" and scope["path"].startswith(GUARDED)
        if not is_guarded or self._is_accepted(Headers(scope=scope).get("authorization", "")):
            await self._app(scope, receive, send)
            return
        message = "the API key is missing or wrong; send one of the gateway's as Authorization: Bearer KEY"
        error = error_object(message, "invalid_request_error", code="invalid_api_key")
        await AsciiJSONResponse(error, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _is_accepted(self, authorization: str) -> bool:
        kind, _, key = authorization.partition(" ")
        digest = _digest(key.strip())
        found = False
        for own in self._digests:  # all of them: the time tells nothing of the keys
            found |= secrets.compare_digest(digest, own)
        return found and kind.lower() == "bearer"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
