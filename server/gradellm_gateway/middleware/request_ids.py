"""Request ids and trace context, from callers through the gateway to the explanation server, and a log line a request.

A caller's `x-request-id` and W3C trace context go along with the calls that its request leads to, so that the logs of
gateway and server name the same request. Ids of responses are made of the request's, as vLLM's are.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Iterable

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradellm_gateway.upstream.headers import call_metadata

__all__ = ["PROBES", "RequestIds", "metadata_of", "request_id_of"]

logger = logging.getLogger("gradellm_gateway.requests")
_ID = re.compile(r"[\w.:+/=-]{1,128}", re.ASCII)  # as the server's: no characters that could break a line of a log
PROBES = ("/health", "/healthz", "/metrics")  # asked for every few seconds; neither logged nor traced


class RequestIds:
    """Middleware that gives each request an id: the caller's own, or a new one.

    Args:
        app: the app behind it.
        is_returned: whether responses have it, as the header x-request-id.
    """

    def __init__(self, app: ASGIApp, *, is_returned: bool = True) -> None:
        self._app, self._is_returned = app, is_returned

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI calls it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        passed = dict(call_metadata(scope["headers"]))
        request_id = passed.get("x-request-id", "")
        if not _ID.fullmatch(request_id):
            request_id = passed["x-request-id"] = uuid.uuid4().hex
        scope.setdefault("state", {})["call_metadata"] = tuple(passed.items())
        started_at, status = time.monotonic(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._is_returned:
                    MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            status = status or 500  # which Starlette answers with, after it has logged the exception
            raise
        finally:
            if scope["path"] not in PROBES:
                _log(scope, status, passed, time.monotonic() - started_at)


def _log(scope: Scope, status: int, passed: dict[str, str], seconds: float) -> None:
    """Write a request's line; without its query and body, which may have a caller's words."""
    trace = passed.get("traceparent", "").split("-")
    logger.info(
        "%s %s %s id=%s trace=%s seconds=%.3f",
        scope["method"],
        re.sub(r"[^!-~]", "?", scope["path"])[:200],
        status or "disconnected",
        passed["x-request-id"],
        trace[1] if len(trace) > 1 else "-",
        seconds,
    )


def metadata_of(connection: HTTPConnection) -> Iterable[tuple[str, str]]:
    """Return the gRPC metadata of the calls that a request leads to: its id and its trace context."""
    metadata: Iterable[tuple[str, str]] = connection.scope.get("state", {}).get("call_metadata", ())
    return metadata


def request_id_of(connection: HTTPConnection) -> str:
    """Return a request's id, of which ids of responses are made."""
    return dict(metadata_of(connection)).get("x-request-id") or uuid.uuid4().hex
