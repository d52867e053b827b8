"""Responses for exceptions of the routes, as OpenAI's error objects."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gradellm import GradellmError
from gradellm_gateway.errors import body_of, error_object, headers_of, status_of
from gradellm_gateway.fields import quoted
from gradellm_gateway.json_response import AsciiJSONResponse
from gradellm_gateway.streaming import CLIENT_CLOSED_REQUEST

__all__ = ["EXCEPTION_HANDLERS"]


async def _on_gradellm_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, GradellmError):
        raise error
    return AsciiJSONResponse(body_of(error), status_of(error), headers_of(error))


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods."""
    if not isinstance(error, HTTPException):
        raise error
    path = quoted(request.url.path)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "GET")
        body = error_object(f"{path} allows {allowed}, not {request.method}", "invalid_request_error")
    else:
        body = error_object(f"there is no {path} here", "invalid_request_error", code="not_found")
    return AsciiJSONResponse(body, error.status_code, error.headers)


async def _on_disconnect(request: Request, error: Exception) -> Response:
    """The client disconnected before its request was complete."""
    return CLIENT_CLOSED_REQUEST


async def _on_unexpected_error(request: Request, error: Exception) -> Response:
    """Any other exception; Starlette logs it."""
    return AsciiJSONResponse(error_object("the gateway failed; see its log", "server_error"), 500)


EXCEPTION_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    GradellmError: _on_gradellm_error,
    HTTPException: _on_http_error,
    ClientDisconnect: _on_disconnect,
    Exception: _on_unexpected_error,
}
